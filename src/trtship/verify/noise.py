"""How far rounding moves a network's outputs: measured on the graph itself, on the bundle's own rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec
import numpy as np

from trtship.graphs import load_graph
from trtship.graphs.noise import AMPLIFIED, DRAWS, open_noisy, spread
from trtship.graphs.noisy import Sizes, noise_sizes
from trtship.graphs.small_rows import RowNoise, judge_all, row_sizes, worst_of
from trtship.passes.emulate import Emulate
from trtship.session.onnxruntime import OnnxRuntimeSession
from trtship.spec import Precision
from trtship.verify.compare import as_session_takes
from trtship.verify.reference import ROWS, Reference

if TYPE_CHECKING:
    import onnx_ir

CHUNK = 4
"""Rows at once: the noise takes several times the memory of the graph itself."""


class Noise(msgspec.Struct, frozen=True):
    """Relative L2 error that rounding alone gives, one deviation: `rows` of the reference and `edges` by name; the
    worst output's. A row on which the graph says NaN or Inf has none.

    `small` has the outputs that are next to nothing on some row, and the deviation of an element there
    (`trtship.graphs.small_rows`); `small_edges` has those of each edge row. `others` is the noise of the rows at each
    of the other sizes, in the reference's order.
    """

    rows: tuple[float, ...]
    edges: dict[str, float]
    small: dict[str, float] = {}
    small_edges: dict[str, dict[str, float]] = {}
    others: tuple[Noise, ...] = ()

    @property
    def worst(self) -> float:
        return max(self.rows, default=0.0)


class _InFull(Emulate):
    """Every low tensor in fp32, and nothing rounded."""

    name: ClassVar[str] = "widen"

    def after(self, graph: onnx_ir.Graph, node: onnx_ir.Node, value: onnx_ir.Value, low: onnx_ir.DataType) -> None:
        pass


def measured_noise(
    graph: Path,
    precision: Precision,
    reference: Reference,
    *,
    losses: Mapping[str, float] | None = None,
    rows: bool = True,
    edges: bool = True,
    untied: bool = False,
) -> Noise:
    """Run the strongly typed `graph` on the reference's rows and edges, several times with the errors that `precision`
    makes (`trtship.graphs.noisy`). `losses` are what quantization adds: relative errors, one deviation, by the name
    of the tensor that has them; those of activations then take the place of the quantization itself. `rows` and
    `edges` say which of the two are measured; `untied` is for cancelling terms (`trtship.graphs.noisy.add_noise`).

    What is measured is how far these runs are apart, and not how far they are from the original: a graph that is
    wrong has the same noise as the right one, and gets no wider a bound. Raises GraphError.
    """
    amplified = AMPLIFIED if precision is Precision.FP32 else 1.0
    model = load_graph(graph)
    sizes = noise_sizes(model, precision, amplified=amplified)
    if losses:
        sizes |= _with_losses(model, sizes, losses)
    cases = reference.cases if edges else [msgspec.structs.replace(case, edges=None) for case in reference.cases]
    with open_noisy(_InFull()(model).model, sizes, untied=untied) as session:
        main, *others = [_noise_of(session, case, amplified, rows=rows) for case in cases]
    return msgspec.structs.replace(main, others=tuple(others))


def _judged(rows: list[RowNoise], edges: list[RowNoise], reference: Reference, amplified: float) -> Noise:
    names = reference.edges.names if reference.edges is not None else ()
    whole = not reference.rowwise
    usual = row_sizes(reference.outputs, whole=True)[0] if reference.outputs else {}
    sizes = row_sizes(reference.outputs, whole=whole)
    each = judge_all([row.scaled(1 / amplified) for row in rows], sizes, usual)
    sizes = row_sizes(reference.edges.outputs) if reference.edges is not None else []
    at_edges = judge_all([row.scaled(1 / amplified) for row in edges], sizes, usual)
    return Noise(
        tuple(one.relative for one in each if np.isfinite(one.relative)),
        {name: one.relative for name, one in zip(names, at_edges, strict=True) if np.isfinite(one.relative)},
        worst_of(one.small for one in each),
        {name: one.small for name, one in zip(names, at_edges, strict=True) if one.small},
    )


def _with_losses(
    model: onnx_ir.Model, sizes: Mapping[onnx_ir.Node, Sizes], losses: Mapping[str, float]
) -> dict[onnx_ir.Node, Sizes]:
    """The errors of the tensors in `losses`. Where Q/DQ made one, nothing is quantized any more: saturation, if
    there is any, is no noise."""
    import onnx_ir as ir

    found = {}
    for node in list(model.graph):
        name, stored = node.outputs[0].name or "", node.inputs[0] if node.inputs else None
        size = sizes[node]
        quantize = stored.producer() if node.op_type == "DequantizeLinear" and stored is not None else None
        if quantize is not None and quantize.op_type == "QuantizeLinear":
            plain = ir.Node("", "Identity", [quantize.inputs[0]])
            plain.outputs[0].name, plain.outputs[0].type = f"{name}/plain", node.outputs[0].type
            plain.outputs[0].shape = node.outputs[0].shape
            node.outputs[0].replace_all_uses_with(plain.outputs[0], replace_graph_outputs=True)
            model.graph.insert_after(node, plain)
            node = plain
        if name in losses:
            found[node] = msgspec.structs.replace(size, result=math.hypot(size.result, losses[name]))
    return found


def _noise_of(session: OnnxRuntimeSession, reference: Reference, amplified: float, *, rows: bool) -> Noise:
    """Measure one set of sizes. Of few rows more runs are made: as many values stand behind each worst row. Without
    `rows` the edge rows alone are run."""
    edges = reference.edges
    draws = max(DRAWS, math.ceil(ROWS / reference.rows)) if reference.rowwise else DRAWS
    if reference.batch is not None:
        found = _by_rows(session, reference.inputs, draws) if rows else []
        at_edges = [] if edges is None else _by_rows(session, edges.inputs, draws)
    else:
        taken = as_session_takes(session, reference.inputs)
        found = spread(session, taken, whole=not reference.rowwise, draws=draws) if rows else []
        apart = [{name: a[i] for name, a in edges.inputs.items()} for i in range(len(edges.names))] if edges else []
        at_edges = [spread(session, as_session_takes(session, feeds), whole=True)[0] for feeds in apart]
    return _judged(found, at_edges, reference, amplified)


def _by_rows(session: OnnxRuntimeSession, feeds: Mapping[str, Any], draws: int) -> list[RowNoise]:
    count = len(next(iter(feeds.values())))
    found: list[RowNoise] = []
    for begin in range(0, count, CHUNK):
        some = {name: array[begin : begin + CHUNK] for name, array in feeds.items()}
        found += spread(session, as_session_takes(session, some), draws=draws)
    return found
