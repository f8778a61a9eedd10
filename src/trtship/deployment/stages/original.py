"""What the original says: the reference rows, its classes for the evaluation pictures, and its labels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from trtship.bundle.top1 import Originals
from trtship.cache import Entry
from trtship.deployment.options import read_labels
from trtship.deployment.stages.base import GRAPH, Stages, graph_digests
from trtship.deployment.stages.graphs import ModelReport
from trtship.errors import SpecError
from trtship.files import sha256_of
from trtship.preprocess import preprocess_images
from trtship.session.base import Session
from trtship.session.onnxruntime import OnnxRuntimeSession
from trtship.session.torch import TorchSession
from trtship.sources import LoadedGraph
from trtship.spec import ShapeRange, allowed_by, as_plain, batch_letter, batch_range, classes_of, to_json
from trtship.verify.evaluate import predictions
from trtship.verify.folder import labelled_pictures
from trtship.verify.reference import ROWS, Reference, make_reference

REFERENCE = "reference"
HOLDS = "rows, in fp64 too, edges, zeros among them, and rows at other sizes, of the model in its own dtypes"
"""In the stage's key: what earlier versions of it remembered holds less."""


def original(stages: Stages, graph: Entry, model: ModelReport, ranges: Mapping[str, ShapeRange]) -> Entry:
    """What the original says: the reference rows, and its classes for the evaluation pictures."""

    def make(folder: Path) -> None:
        with (
            _session(stages, graph, model) as session,
            stages.progress.stage("run the original", session.runtime),
        ):
            pictures = _first_pictures(stages, model)
            letter = batch_letter(model.inputs)
            sizes = {name: r.opt for name, r in ranges.items() if name != letter}
            reference = make_reference(
                session,
                sizes=sizes,
                ranges=ranges,
                pictures=pictures,
                preprocess=model.preprocess,
                exact=_exact(stages, model),
                domains=model.domains,
                samples=stages.samples(model.inputs, ranges, model.preprocess),
                allowed=allowed_by(model.export.rules),
            )
            reference.save(folder / REFERENCE)
            if stages.options.eval_dir is not None:
                (folder / "originals.json").write_bytes(to_json(_originals(stages, session, model, ranges)))

    labels = ["labels"] if stages.options.eval_dir is not None else []  # they tell which class a folder is
    repaired = {"graph": graph_digests(graph)} if model.export.thawed else {}
    key = {**stages.part("model", "sizes", "eval", "inputs", "versions", *labels), **repaired, "holds": HOLDS}
    key["domains"], key["rules"] = as_plain(model.domains), as_plain(model.export.rules)
    return stages.run("original", key, make)


def read_reference(entry: Entry, model: ModelReport) -> Reference:
    """What the stage recorded."""
    return Reference.read(
        lambda name: entry.read(f"{REFERENCE}/{name}"),
        inputs=model.inputs,
        outputs=model.export.outputs,
        sizes=None,
        has=lambda name: f"{REFERENCE}/{name}" in entry.files,
    )


def reference_digests(entry: Entry) -> dict[str, str]:
    """SHA-256 of the reference's files."""
    return {name: digest for name, digest in entry.files.items() if name.startswith(f"{REFERENCE}/")}


def _exact(stages: Stages, model: ModelReport) -> Session | None:
    """A copy of the model in float64; None for an ONNX graph, of which onnxruntime runs little in float64."""
    loaded = stages.model
    if isinstance(loaded, LoadedGraph):
        return None
    outputs = [msgspec.structs.replace(s, dtype="float64") if s.dtype == "float32" else s for s in model.export.outputs]
    return TorchSession(loaded.module, inputs=model.inputs, outputs=outputs, dtype="float64")


def _session(stages: Stages, graph: Entry, model: ModelReport) -> Session:
    """The model itself. A graph with a frozen batch is wrong at the reference's: the repaired one then."""
    loaded = stages.model
    if isinstance(loaded, LoadedGraph):
        session = OnnxRuntimeSession(graph.folder / GRAPH if model.export.thawed else loaded.path)
        session.inputs, session.outputs = model.inputs, model.export.outputs  # in the file, sizes have other names
        return session
    return TorchSession(loaded.module, inputs=model.inputs, outputs=model.export.outputs)


def _first_pictures(stages: Stages, model: ModelReport) -> Any:
    """A few evaluation pictures, spread over the folder, preprocessed; None without a folder."""
    if stages.options.eval_dir is None or model.preprocess is None:
        return None
    pictures = _pictures(stages, model)
    some = [pictures[i].path for i in np.linspace(0, len(pictures) - 1, ROWS // 2 + 1).astype(int)]
    return preprocess_images(some, model.preprocess)


def _pictures(stages: Stages, model: ModelReport) -> Any:
    return labelled_pictures(
        Path(stages.options.eval_dir or ""), labels=labels_of(stages, model), classes=classes_of(model.export.outputs)
    )


def _originals(stages: Stages, session: Session, model: ModelReport, ranges: Mapping[str, ShapeRange]) -> Originals:
    if model.preprocess is None:
        raise SpecError(
            "--eval needs a source that tells its preprocessing",
            why=f"{stages.options.source.source} does not",
            do="leave --eval away, or let the model tell it (trtship_preprocess, see README)",
        )
    pictures = _pictures(stages, model)
    limits = batch_range(model.inputs, ranges)
    found = predictions(
        session, pictures, model.preprocess, batch=limits.opt, fixed=limits.min > 1, progress=stages.progress
    )
    return Originals(
        runtime=session.runtime,
        predictions={sha256_of(p.path): int(c) for p, c in zip(pictures, found, strict=True)},
    )


def labels_of(stages: Stages, model: ModelReport) -> tuple[str, ...] | None:
    """The user's, else the source's. Raises SpecError where their number is not the model's classes'."""
    if stages.options.labels is None:
        return model.labels
    labels, classes = read_labels(Path(stages.options.labels)), classes_of(model.export.outputs)
    if classes is not None and len(labels) != classes:
        raise SpecError(
            f"{stages.options.labels} has {len(labels)} labels, and the model {classes} classes",
            why="each class needs one label, in the model's order",
            do="use the file that belongs to this model",
        )
    return labels
