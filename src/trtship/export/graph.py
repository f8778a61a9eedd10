"""An ONNX graph that somebody brings: its dynamic sizes named as trtship names them, and its batch put to the test."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trtship.errors import ExportMismatchError, TrtshipError
from trtship.export.mend import Thaw, check_and_mend
from trtship.export.onnx import ExportReport, traced_sizes
from trtship.export.outputs import Shapes, settle_outputs
from trtship.export.sizes import must_run, sizes_to_compare
from trtship.graphs import RoundingBound, load_graph, rounding_bound, save_graph
from trtship.measure import Measure, measure, random_inputs
from trtship.progress import SILENT, Progress
from trtship.session.onnxruntime import OnnxRuntimeSession
from trtship.sources import LoadedGraph
from trtship.spec import Precision, ShapeRange, TensorSpec, batch_letter


def adopt_graph(
    loaded: LoadedGraph,
    target: Path,
    *,
    ranges: Mapping[str, ShapeRange],
    thaw: Thaw | None = None,
    progress: Progress = SILENT,
) -> ExportReport:
    """Write the graph to `target` with the letters of `loaded.inputs` as its dynamic sizes.

    There is no PyTorch to ask, so its batch is held against itself: a row must come out the same alone and among
    others. Raises ExportMismatchError where it does not, and `thaw` finds no batch to make dynamic again.
    """
    model = load_graph(loaded.path)
    specs = {spec.name: spec for spec in loaded.inputs}
    for value in model.graph.inputs:
        if value.name in specs:  # old graphs list their weights among the inputs
            value.shape = _shape(specs[value.name])
    for value, spec in zip(model.graph.outputs, loaded.outputs, strict=True):
        value.shape = _shape(spec)
    save_graph(model, target)
    traced = traced_sizes(loaded.inputs, ranges)

    def check() -> tuple[RoundingBound, tuple[Measure, ...], Shapes]:
        derived = rounding_bound(load_graph(target), Precision.FP32)
        return derived, *_check_rows(target, loaded, traced, 2 * derived.bound, ranges)

    (derived, checks, shapes), thawed = check_and_mend(
        check, target, thaw=thaw, batch=batch_letter(loaded.inputs), traced=None, sizes=traced, progress=progress
    )
    return ExportReport(
        exporter="none: the graph was given",
        opset=loaded.opset,
        traced=traced,
        fell_back="",
        bound=2 * derived.bound,
        bound_from=f"twice the bound of {derived.derivation}",
        checks=checks,
        outputs=settle_outputs(target, _outputs(target) if thawed else loaded.outputs, shapes),
        thawed=thawed,
    )


def _outputs(graph: Path) -> tuple[TensorSpec, ...]:
    """As they are in the file: one that had a frozen batch has the batch's letter now."""
    with OnnxRuntimeSession(graph) as session:
        return session.outputs


def _shape(spec: TensorSpec) -> Any:
    import onnx_ir

    return onnx_ir.Shape(spec.shape)


def _check_rows(
    graph: Path, loaded: LoadedGraph, traced: Mapping[str, int], bound: float, ranges: Mapping[str, ShapeRange]
) -> tuple[tuple[Measure, ...], Shapes]:
    """Each row alone, against the same row in a batch, at every set of sizes of `sizes_to_compare`; and the shapes of
    the outputs there. A graph of a fixed batch is only run."""
    letter = batch_letter(loaded.inputs)
    ranges = {name: sizes for name, sizes in ranges.items() if name != letter}  # a row alone is a run of its own
    measures: list[Measure] = []
    shapes: dict[str, list[tuple[int, ...]]] = {spec.name: [] for spec in loaded.outputs}
    with OnnxRuntimeSession(graph) as session:
        for sizes in sizes_to_compare(traced, ranges, batch=letter):
            feeds = random_inputs(loaded.inputs, sizes, seed=7)
            batched = [s.name for s in loaded.inputs if s.shape and s.shape[0] == letter]
            try:
                together = session.infer(feeds)
                rows = [
                    session.infer({n: a[i : i + 1] if n in batched else a for n, a in feeds.items()})
                    for i in range(sizes[letter] if letter else 0)
                ]
            except TrtshipError as error:
                others = {name: size for name, size in sizes.items() if name != letter}
                if not must_run(others, traced, ranges):  # a size between that the graph never took
                    continue
                raise _frozen(graph, sizes, f"it cannot run there: {error.why or error.what}") from error
            for spec in loaded.outputs:
                shapes[spec.name].append(tuple(together[spec.name].shape))
                if not rows:
                    continue
                alone = np.concatenate([row[spec.name] for row in rows]) if spec.shape else together[spec.name]
                found = measure(alone, together[spec.name], output=spec.name, sizes=sizes)
                measures.append(found)
                if not found.finite or found.rel_l2 is None or found.rel_l2 > bound:
                    raise _frozen(graph, sizes, f"rows of {spec.name} depend on their neighbours (or are not finite)")
    return tuple(measures), shapes


def _frozen(graph: Path, sizes: Mapping[str, int], why: str) -> ExportMismatchError:
    where = ", ".join(f"{k}={n}" for k, n in sizes.items())
    return ExportMismatchError(
        f"the graph is wrong at {where}",
        why=why,
        do="export it again with a batch that is dynamic throughout, or declare its input with a fixed batch",
    )
