"""`manifest.json`: what is in the bundle, how it was made, and every verdict. Strict, versioned, sealed.

The seal is the SHA-256 of the manifest's own canonical JSON (sorted keys) with the seal left empty; a file that is
not byte for byte that canonical JSON is refused, so that no byte of it can change unseen. It is taken over the JSON
and not over the records, so that a newer trtship, whose records have more fields, still reads an older bundle. (A seal
is no signature: it shows damage, not malice.)
"""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from trtship.bundle.limits import check_manifest, check_manifest_size
from trtship.errors import BundleCorruptError, BundleSchemaError
from trtship.gpu import Gpu
from trtship.input_values import TriedInput
from trtship.preprocess import Preprocess
from trtship.sources.options import SourceOptions
from trtship.spec import Precision, Record, ShapeRange, SizeRule, TensorSpec, as_plain, to_json
from trtship.verify import Bound, Verdict
from trtship.verify.gates import Gates

SCHEMA = 2
"""Raised when an older trtship could not read, or would misread, what a newer one writes."""


class SourceInfo(Record, frozen=True):
    """Where the model came from, in words, what was said while it was loaded, and how to load it again."""

    source: str
    options: SourceOptions
    weights: str
    notes: tuple[str, ...]


class Machine(Record, frozen=True):
    """Where the bundle was made."""

    platform: str
    python: str
    cpus: int
    gpus: tuple[Gpu, ...]


class Manifest(Record, frozen=True):
    """All of `manifest.json`.

    `graph` is the fp32 ONNX graph after all rewrites, `precision_graph` the strongly typed one that the plan was built
    from (the same file for fp32 and tf32), `plan` the serialized engine, `labels` a text file with one a line; paths
    are relative to the bundle. `profiles` are the batch sizes that the plan has kernels of their own for. `files` maps
    every file but the manifest to its SHA-256. `recipe` is everything that the bundle was made from, `bounds` the
    derived gate on relative L2 for each subject, `max_drop` the gate on top-1, in points, `gates` those that the user
    set. `tried` are the values that the checks ran on; bundles of earlier versions do not tell them. `rules` are
    conditions on sizes within the ranges: where one is broken, the graph is not the model.
    """

    schema: int
    seal: str
    name: str
    created: str
    versions: dict[str, str]
    machine: Machine
    source: SourceInfo
    precision: Precision
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    plan_inputs: tuple[TensorSpec, ...]
    plan_outputs: tuple[TensorSpec, ...]
    ranges: dict[str, ShapeRange]
    preprocess: Preprocess | None
    labels: str | None
    graph: str
    precision_graph: str
    plan: str
    family: str
    family_version: str
    reference_sizes: dict[str, int]
    bounds: dict[str, Bound]
    max_drop: float
    verdicts: tuple[Verdict, ...]
    recipe: dict[str, Any]
    files: dict[str, str]
    profiles: tuple[int, ...]
    gates: Gates
    tried: tuple[TriedInput, ...] = ()
    rules: tuple[SizeRule, ...] = ()


def seal(manifest: Manifest) -> bytes:
    """The bytes of `manifest.json`."""
    plain = as_plain(manifest)
    return to_json({**plain, "seal": _digest(plain)})


def _digest(plain: dict[str, Any]) -> str:
    return hashlib.sha256(to_json({**plain, "seal": ""})).hexdigest()


def read_manifest(data: bytes, *, where: str) -> Manifest:
    """Parse, and check the seal and every value.

    Raises BundleSchemaError (newer, not in the schema, or a value out of its limits), BundleCorruptError, BundleError
    (too large).
    """
    check_manifest_size(len(data), where=where)
    try:
        version = msgspec.json.decode(data, type=_Version).schema
        plain = msgspec.json.decode(data)
        sealed = to_json(plain) == data and plain.get("seal") == _digest(plain)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BundleCorruptError(
            f"{where} is no bundle manifest", why=str(error), do="deploy the model again, or copy the bundle again"
        ) from error
    if version > SCHEMA:
        raise BundleSchemaError(
            f"{where} was written by a newer trtship",
            why=f"its schema is {version}, and this trtship reads up to {SCHEMA}",
            do="pip install --upgrade trtship",
        )
    if not sealed:
        raise BundleCorruptError(
            f"{where} was changed after it was written",
            why="its own SHA-256 does not match",
            do="copy the bundle again from where it was made, or deploy the model again",
        )
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.MsgspecError, OverflowError) as error:
        raise BundleSchemaError(
            f"{where} does not follow the schema", why=str(error), do="deploy the model again with this trtship"
        ) from error
    check_manifest(manifest, plain, where=where)
    return manifest


def files_listed(data: bytes) -> frozenset[str] | None:
    """Return the files that a manifest of any version lists, where its seal proves that trtship wrote it; else None.

    Neither the rest of its schema nor its values are looked at: a bundle of another version, or one that cannot be
    used, may be replaced as well.
    """
    try:
        plain = msgspec.json.decode(data, type=dict[str, Any])
        files = msgspec.convert(plain.get("files"), dict[str, str])
        sealed = isinstance(plain.get("schema"), int) and plain.get("seal") == _digest(plain)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return frozenset(files) if sealed else None


class _Version(msgspec.Struct):
    schema: int
