"""How far a low precision graph is from the fp32 graph, tensor by tensor from the input to the output.

Both run through onnxruntime on the same rows, the low one with every tensor rounded (`trtship.passes.emulate`), and a
few tensors are read out on the way: those that everything passes through, which in a residual network is the residual
stream. Only a share of them are outputs at a time, by the size of those before, so that memory stays bounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trtship.errors import TrtshipError
from trtship.files import temporary_folder
from trtship.graphs.operators import MOVES, PRODUCTS
from trtship.graphs.storage import load_graph
from trtship.measure import measure
from trtship.passes import emulate_low
from trtship.progress import SILENT, Progress
from trtship.session.onnxruntime import OnnxRuntimeSession
from trtship.spec import Record, ShapeRange
from trtship.verify.reference import Reference

if TYPE_CHECKING:
    import onnx_ir

MOST = 64
"""Tensors that are read out, at most."""
ROWS = 3
"""Rows of the reference that are run."""
MEMORY = 256 * 2**20
"""Bytes of tensors that one run of a graph may give out."""
LONG_GAP = 0.25
"""Share of the graph's nodes without a single tensor that all data passes through, above which the products in
between are read out as well: a network with long skips, such as a U-Net, has few such tensors."""


class LayerError(Record, frozen=True):
    """One tensor: the node it comes from, and how many nodes of the fp32 graph, in percent, come before it.

    `rel_l2` is ||low - fp32|| / ||fp32|| over all of it, None where it is not finite; `peak` its largest magnitude in
    fp32.
    """

    tensor: str
    operator: str
    depth: float
    rel_l2: float | None
    peak: float


class ErrorsByLayer(Record, frozen=True):
    """All tensors that were read out, in the order of the graph. `runtime` ran them on `rows` rows of the reference;
    `tensors` of the graph could have been read. Where nothing could be read, `reason` says why."""

    runtime: str = ""
    rows: int = 0
    tensors: int = 0
    layers: tuple[LayerError, ...] = ()
    reason: str = ""


def rows_to_run(batch: ShapeRange) -> int:
    """A few, of those that the graphs take."""
    return min(max(ROWS, batch.min), batch.max)


def errors_by_layer(
    graph: Path, low: Path, reference: Reference, *, rows: int, progress: Progress = SILENT
) -> ErrorsByLayer:
    """Compare the fp32 `graph` with its twin `low`, as `to_precision` made it, on the first `rows` of the reference.

    What cannot be run is the record's `reason`, not an error.
    """
    feeds, _ = reference.at(rows)
    try:
        with temporary_folder("trtship-layers-") as folder:
            emulate_low(low, folder / "low.onnx")
            full, rounded = load_graph(graph), load_graph(folder / "low.onnx")
            pairs = _pairs(spine(full.graph), rounded.graph)
            chosen = [pairs[i] for i in np.unique(np.linspace(0, len(pairs) - 1, min(MOST, len(pairs))).astype(int))]
            place = {node: index for index, node in enumerate(full.graph)}
            layers: list[LayerError] = []
            runtime, at_once = "", 1
            while len(layers) < len(chosen):
                progress.step(len(layers) / len(chosen), f"{len(layers)} of {len(chosen)} tensors")
                part = chosen[len(layers) : len(layers) + at_once]
                expected, runtime = _run(full, [one for one, _ in part], feeds, folder)
                found, _ = _run(rounded, [other for _, other in part], feeds, folder)
                layers += [_error(one, place, r, a) for (one, _), r, a in zip(part, expected, found, strict=True)]
                at_once = max(1, MEMORY // max(1, *(a.nbytes for a in expected)))
    except TrtshipError as error:
        return ErrorsByLayer(reason=f"{error.what}: {error.why}" if error.why else error.what)
    return ErrorsByLayer(runtime=runtime, rows=rows, tensors=len(pairs), layers=tuple(layers))


def spine(graph: onnx_ir.Graph) -> list[onnx_ir.Value]:
    """The floating tensors that all data passes through on its way to the outputs, in the graph's order, without those
    that only move what came before them; the products too, in long stretches where there is no such tensor.

    A tensor is one of them when, right after its node, nothing else that is known so far is still to be used: the
    graph's nodes are in topological order, so each one before belongs to the way there, and each one after to the way
    from there.
    """
    data, uses = _data(graph)
    nodes = list(graph)
    waiting = {value for value in graph.inputs if uses.get(value)}
    found: dict[int, onnx_ir.Value] = {}
    for index, node in enumerate(nodes):
        for value in {v for v in node.inputs if v in data} if _goes_on(node, data) else ():
            assert value is not None
            uses[value] -= sum(v is value for v in node.inputs)
            if not uses[value]:
                waiting.discard(value)
        waiting.update(value for value in node.outputs if uses.get(value))
        last = next((value for value in node.outputs if value in data), None)
        if last is not None and node.op_type not in MOVES and (waiting == {last} or last.is_graph_output()):
            found[index] = last
    edges = [-1, *sorted(found), len(nodes)]
    for begin, end in pairwise(edges):
        if end - begin > LONG_GAP * len(nodes):
            for index in range(begin + 1, min(end, len(nodes))):
                value = nodes[index].outputs[0]
                if nodes[index].op_type in PRODUCTS and value in data:
                    found[index] = value
    return [found[index] for index in sorted(found)]


def _data(graph: onnx_ir.Graph) -> tuple[set[Any], dict[Any, int]]:
    """The floating tensors that depend on the inputs and that an output depends on, other than by their shape; and how
    often nodes use each."""
    import onnx_ir as ir

    floats = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
    data = {value for value in graph.inputs if value.dtype in floats and value.name not in graph.initializers}
    for node in graph:
        if node.op_type not in ("Shape", "Size") and any(value in data for value in node.inputs):
            data.update(value for value in node.outputs if value.dtype in floats)
    wanted = set(graph.outputs)
    for node in reversed(graph):
        if any(value in wanted for value in node.outputs):
            wanted.update(value for value in node.inputs if value is not None)
    data &= wanted
    uses: dict[Any, int] = {}
    for node in graph:
        for value in node.inputs if _goes_on(node, data) else ():
            if value in data:
                uses[value] = uses.get(value, 0) + 1
    return data, uses


def _goes_on(node: onnx_ir.Node, data: set[Any]) -> bool:
    """Whether what a node reads goes on in what it makes. An ArgMax, or a shape, is where data ends."""
    return any(value in data for value in node.outputs)


def _pairs(values: Sequence[onnx_ir.Value], low: onnx_ir.Graph) -> list[tuple[onnx_ir.Value, onnx_ir.Value]]:
    """Each tensor with its rounded twin, where the low precision graph still has it."""
    import onnx_ir as ir

    by_name = {value.name: value for node in low for value in node.outputs if value.dtype == ir.DataType.FLOAT}
    twins = [(value, by_name.get(f"{value.name}/rounded") or by_name.get(value.name)) for value in values]
    return [(value, twin) for value, twin in twins if twin is not None]


def _run(
    model: onnx_ir.Model, wanted: Sequence[onnx_ir.Value], feeds: dict[str, Any], folder: Path
) -> tuple[list[Any], str]:
    """These tensors of the graph, and what ran it. The model's outputs are the same afterwards as before."""
    import onnx_ir as ir

    kept = list(model.graph.outputs)
    try:
        model.graph.outputs[:] = wanted
        # not by save_graph, whose check wants a shape of every output
        ir.save(model, folder / "part.onnx", external_data="part.data", size_threshold_bytes=1024)
    finally:
        model.graph.outputs[:] = kept
    with OnnxRuntimeSession(folder / "part.onnx") as session:
        arrays = session.infer({spec.name: feeds[spec.name] for spec in session.inputs})
        return [arrays[value.name or ""] for value in wanted], session.runtime


def _error(value: onnx_ir.Value, place: dict[Any, int], expected: Any, found: Any) -> LayerError:
    node = value.producer()
    assert node is not None
    whole = measure(expected.reshape(1, -1), found.reshape(1, -1), output=value.name or "", sizes={})
    return LayerError(
        tensor=value.name or "",
        operator=node.op_type,
        depth=round(100 * place[node] / len(place), 1),
        rel_l2=whole.rel_l2,
        peak=float(np.abs(expected).max()) if expected.size else 0.0,
    )
