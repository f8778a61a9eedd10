"""Which values a manifest may have. Its hashes tell that it is whole, not who made it.

`check_manifest` is called by the one reader of manifests, before anything is allocated or opened by what they say.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from trtship.bundle.names import MANIFEST, SIGNATURE, fault_of, leads_out, twice
from trtship.errors import BundleCorruptError, BundleError, BundleSchemaError, SpecError
from trtship.spec import DTYPES, ShapeRange, TensorSpec, batch_letter

if TYPE_CHECKING:
    from trtship.bundle.manifest import Manifest

MAX_MANIFEST_BYTES = 16 * 2**20
"""A manifest of 50 verdicts has about 100 KiB."""
MAX_DEPTH = 64
"""Of the manifest's JSON; those that deploy writes have 8."""
MAX_FILES = 10_000
"""Files in a bundle; a deploy writes about 30."""
MAX_VERDICTS = 10_000
"""A bundle has three subjects with about a dozen gates each."""
MAX_TENSORS = 1_000
"""Inputs, or outputs, of a model."""
MAX_RANK = 16
"""TensorRT takes 8 dimensions, onnxruntime no more than a few beyond."""
MAX_ELEMENTS = 2**31 - 1
"""Of one tensor at its largest sizes: TensorRT takes no more (Developer Guide, "Limitations")."""
MAX_SIZE = 2**24
"""Of a size that may vary; larger batches or sides do not fit a GPU."""
MAX_PROFILES = 1_000
MAX_NAME = 4096
"""Characters of a tensor's name; exporters join the names of nested modules."""
MAX_DROP = 100.0
"""Points of top-1 that can be lost."""
MAX_NATIVE_BYTES = 64 * 2**30
"""Of a graph's file, or of a plan: what GPUs of today can load."""
MAX_REFERENCE_BYTES = 4 * 2**30
"""Of one reference array: 9 rows of 3 x 6000 x 6000 in float32."""
MAX_OTHER_BYTES = 64 * 2**20
"""Of labels, the report and each file of evidence, which are read whole into memory."""


def max_bytes_of(name: str, manifest: Manifest) -> int:
    """Return the most bytes that a file of the manifest may have."""
    native = (manifest.graph, manifest.precision_graph, manifest.plan)
    if name.startswith(native):
        return MAX_NATIVE_BYTES
    return MAX_REFERENCE_BYTES if name.startswith("reference/") else MAX_OTHER_BYTES


def check_manifest_size(size: int, *, where: str) -> None:
    """Raises BundleError for a manifest of more bytes than are read."""
    if size > MAX_MANIFEST_BYTES:
        raise BundleError(
            f"{where} is too large",
            why=f"a manifest has at most {MAX_MANIFEST_BYTES} bytes",
            do="copy the bundle again from where it was made, or deploy the model again",
        )


def check_manifest(manifest: Manifest, plain: Any, *, where: str) -> None:
    """Check every value of a manifest that something is allocated, opened or computed by.

    Args:
        manifest: as parsed.
        plain: the same as plain JSON values.
        where: how messages call it.

    Raises:
        BundleCorruptError: a name leads out of the bundle, or is not listed.
        BundleSchemaError: another value is out of its limits.
    """
    _check_files(manifest, where)
    for fault in (*_faults_of_text(plain), *_faults(manifest)):
        raise BundleSchemaError(
            f"{where} has a value that no bundle has",
            why=fault,
            do="copy the bundle again from where it was made, or deploy the model again",
        )


def _check_files(m: Manifest, where: str) -> None:
    named = [m.graph, m.precision_graph, m.plan, *([] if m.labels is None else [m.labels])]
    foreign = [name for name in m.files if leads_out(name)] + [name for name in named if name not in m.files]
    if foreign:
        raise BundleCorruptError(
            f"{where} names a file that is not its own: {foreign[0]!r}",
            why="the manifest does not list it as a path within the bundle",
            do="deploy the model again",
        )


def _faults_of_text(plain: Any) -> Iterator[str]:
    """Text that no system takes for a name, numbers that are none, and nesting without end."""
    level, below = [plain], 0
    while level:
        below += 1
        if below > MAX_DEPTH:
            yield f"its values are nested more than {MAX_DEPTH} deep"
            return
        following: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                following += [*value, *value.values()]
            elif isinstance(value, list):
                following += value
            elif isinstance(value, str) and "\0" in value:
                yield f"{value!r} has a character NUL"
            elif isinstance(value, float) and not math.isfinite(value):
                yield f"{value} is not a finite number"
        level = following


def _faults(m: Manifest) -> Iterator[str]:
    if m.schema < 1:
        yield f"schema {m.schema}"
    if not m.name:
        yield "it has no name"
    try:
        datetime.fromisoformat(m.created)
    except ValueError:
        yield f"created {m.created!r} is not a time"
    yield from _faults_of_files(m.files)
    for kind, specs in (("input", m.inputs), ("output", m.outputs)):
        yield from _faults_of_specs(kind, specs)
    for kind, specs, plan in (("input", m.inputs, m.plan_inputs), ("output", m.outputs, m.plan_outputs)):
        yield from _faults_of_specs(f"plan {kind}", plan)
        if [(s.name, s.shape) for s in specs] != [(s.name, s.shape) for s in plan]:
            yield f"the plan's {kind}s are not the graph's"
    yield from _faults_of_ranges(m)
    yield from _faults_of_sizes(m)
    yield from _faults_of_gates(m)


def _faults_of_files(files: Mapping[str, str]) -> Iterator[str]:
    if len(files) > MAX_FILES:
        yield f"it lists {len(files)} files, and a bundle has at most {MAX_FILES}"
        return
    for name, digest in files.items():
        if why := fault_of(name):
            yield f"the file {name!r} {why}"
        if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
            yield f"{digest[:100]!r} is no SHA-256"
    if (name_twice := twice([MANIFEST, SIGNATURE, *files])) is not None:
        yield f"{name_twice!r} is listed twice, or is a bundle's own"


def _faults_of_specs(kind: str, specs: Sequence[TensorSpec]) -> Iterator[str]:
    if not 1 <= len(specs) <= MAX_TENSORS:
        yield f"{len(specs)} {kind}s"
    if len({spec.name for spec in specs}) < len(specs):
        yield f"two {kind}s have one name"
    for spec in specs:
        if not 1 <= len(spec.name) <= MAX_NAME:
            yield f"the name of an {kind} has {len(spec.name)} characters"
        if spec.dtype not in DTYPES:
            yield f"{kind} {spec.name}: dtype {spec.dtype!r}"
        if len(spec.shape) > MAX_RANK:
            yield f"{kind} {spec.name} has {len(spec.shape)} dimensions"
        for size in spec.shape:
            if not (1 <= size <= MAX_ELEMENTS if isinstance(size, int) else 1 <= len(size) <= MAX_NAME):
                yield f"{kind} {spec.name} has a size {size!r}"


def _faults_of_ranges(m: Manifest) -> Iterator[str]:
    for letter, r in m.ranges.items():
        if not 1 <= r.min <= r.opt <= r.max <= MAX_SIZE:
            yield f"the sizes of {letter!r} are {r.min}, {r.opt}, {r.max}; 1 <= MIN <= OPT <= MAX <= {MAX_SIZE} holds"
    letters = {letter for spec in m.inputs for letter in spec.letters}
    if missing := sorted(letters - set(m.ranges)):
        yield f"the size {missing[0]!r} has no range"
        return
    for spec in (*m.inputs, *m.outputs):
        if _elements(spec, m.ranges) > MAX_ELEMENTS:
            yield f"{spec} has more than {MAX_ELEMENTS} elements at its largest sizes"
    batch = m.ranges.get(batch_letter(m.inputs) or "")
    if len(m.profiles) > MAX_PROFILES or any(batch is None or n not in batch for n in m.profiles):
        yield "profiles are not among the batch sizes"


def _elements(spec: TensorSpec, ranges: Mapping[str, ShapeRange]) -> int:
    """At the largest sizes. A letter that is an output's alone is computed by the model: it counts as 1."""
    return math.prod((ranges[d].max if d in ranges else 1) if isinstance(d, str) else d for d in spec.shape)


def _faults_of_sizes(m: Manifest) -> Iterator[str]:
    """Those of the reference rows: one for each letter but the batch's."""
    others = {letter for spec in m.inputs for letter in spec.letters} - {batch_letter(m.inputs)}
    if missing := sorted(others - set(m.reference_sizes)):
        yield f"the reference has no size {missing[0]!r}"
    for letter, size in m.reference_sizes.items():
        if not 1 <= size <= MAX_SIZE:
            yield f"the reference has the size {letter} = {size}"


def _faults_of_gates(m: Manifest) -> Iterator[str]:
    wanted = {"graph fp32", f"graph {m.precision.value}", "plan"}
    if missing := sorted(wanted - set(m.bounds)):
        yield f"{missing[0]} has no bound"
    for subject, bound in m.bounds.items():
        values = (bound.value, 0.0 if bound.own is None else bound.own, *bound.rows.values())
        if not all(0 <= value < math.inf for value in values):
            yield f"the bound of {subject} is {bound.value}"
    if not 0 <= m.max_drop <= MAX_DROP:
        yield f"max_drop {m.max_drop}"
    try:
        m.gates.check()
    except SpecError as error:
        yield error.what
    if len(m.verdicts) > MAX_VERDICTS:
        yield f"it has {len(m.verdicts)} verdicts, and a bundle has at most {MAX_VERDICTS}"
    for verdict in m.verdicts:
        if verdict.bound is not None and not 0 <= verdict.bound.value < math.inf:
            yield f"a bound of {verdict.subject} is {verdict.bound.value}"
