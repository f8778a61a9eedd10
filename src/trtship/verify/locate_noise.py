"""How far rounding may move each tensor inside a graph: the floor below which a difference says nothing.

At the outputs, the derived bound (`trtship.graphs.rounding`) takes the network's own gain for 1. Inside it is not: a
difference of two large numbers, or a softmax of large scores, magnifies what came in. So the gain is measured: the
reference graph runs once more with every tensor rounded to bfloat16, which has fp32's range and so overflows nowhere,
and each tensor's error is divided by the one that its roundings alone would explain. Then

    floor(t) = bound(roundings of the suspect up to t) * max(1, gain(t))

The gain is that of one draw; below 1 it is taken for chance. Quantization adds to the suspect's roundings: an integer
step s is uniform over a step, s / sqrt(12); fp8 (E4M3) rounds to 4 bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from trtship.graphs.operators import MOVES
from trtship.graphs.rounding import DEVIATION, LAMBDA, roundings_up_to
from trtship.graphs.roundings import FLOATS
from trtship.spec import Precision
from trtship.verify.locate_graph import copy_of

if TYPE_CHECKING:
    import onnx_ir

BF16 = Precision.BF16.unit_roundoff
E4M3 = 2.0**-4
"""Unit roundoff: 3 bits are stored, and one is implied."""


def derived_floors(
    suspect: onnx_ir.Model, reference: onnx_ir.Model, precision: Precision, *, steps: Mapping[str, float]
) -> tuple[dict[str, float], dict[str, float]]:
    """The bound for each tensor by name, of the suspect at its precision and of the fp32 reference; `steps` is the
    quantization's relative error by the name of the DequantizeLinear's result."""
    more = {name: (error / DEVIATION) ** 2 for name, error in steps.items()}
    return (
        {n: LAMBDA * math.sqrt(r.variance) for n, r in roundings_up_to(suspect, precision, more=more).items()},
        {n: LAMBDA * math.sqrt(r.variance) for n, r in roundings_up_to(reference, Precision.FP32).items()},
    )


def rounded_to_bfloat16(model: onnx_ir.Model) -> tuple[onnx_ir.Model, dict[str, str], dict[str, float]]:
    """A copy that rounds everything, the names that its rounded tensors have, and the error that the roundings on the
    longest path to each explain (one standard deviation, relative)."""
    import onnx_ir as ir

    names = [(node, value.name or "") for node in model.graph for value in node.outputs]
    counts = _roundings(model)
    copy = copy_of(model)
    for value in copy.graph.initializers.values():
        if value.const_value is not None and value.dtype is not None and value.dtype.name == "FLOAT":
            value.const_value = ir.Tensor(_to_bfloat16(value.const_value.numpy()), name=value.name)
    renamed = {}
    for node, (_, name) in zip(_outputs(copy), names, strict=True):
        owner, value = node
        if value.dtype is None or value.dtype.name != "FLOAT" or owner.op_type in MOVES:
            continue
        renamed[name] = _round(copy.graph, owner, value)
    return copy, renamed, {name: DEVIATION * BF16 * math.sqrt(count) for name, count in counts.items()}


def _outputs(model: onnx_ir.Model) -> list[tuple[onnx_ir.Node, onnx_ir.Value]]:
    return [(node, value) for node in model.graph for value in node.outputs]


def _round(graph: onnx_ir.Graph, node: onnx_ir.Node, value: onnx_ir.Value) -> str:
    import onnx_ir as ir

    low = ir.Value(name=f"{value.name}/bfloat16", shape=value.shape, type=ir.TensorType(ir.DataType.BFLOAT16))
    back = ir.Value(name=f"{value.name}/rounded", shape=value.shape, type=ir.TensorType(ir.DataType.FLOAT))
    value.replace_all_uses_with(back, replace_graph_outputs=True)
    kinds = ((value, low, ir.DataType.BFLOAT16), (low, back, ir.DataType.FLOAT))
    casts = [
        ir.Node("", "Cast", [before], [ir.AttrInt64("to", int(kind))], outputs=[after]) for before, after, kind in kinds
    ]
    graph.insert_after(node, casts)
    return back.name or ""


def _to_bfloat16(array: Any) -> Any:
    import ml_dtypes

    return array.astype(ml_dtypes.bfloat16).astype(np.float32)


def _roundings(model: onnx_ir.Model) -> dict[str, int]:
    """How many of them are on the longest path to each tensor: one a result, one more where a constant takes part."""
    found: dict[str, int] = {}
    for node in model.graph:
        before = max((found.get(value.name or "", 0) for value in node.inputs if value is not None), default=0)
        kinds = {value.dtype.name for value in node.outputs if value.dtype is not None}
        constants = any(
            value is not None
            and value.const_value is not None
            and value.dtype is not None
            and value.dtype.name in FLOATS
            for value in node.inputs
        )
        own = 1 + constants if "FLOAT" in kinds and node.op_type not in MOVES else 0
        found.update((value.name or "", before + own) for value in node.outputs)
    return found


def quantization_errors(model: onnx_ir.Model, values_of: Callable[[str], Any]) -> dict[str, float]:
    """Relative error of quantization, one standard deviation, for each DequantizeLinear by the name of its result;
    `values_of` gives the numbers that a tensor of activations holds."""
    found = {}
    for node in model.graph:
        if node.op_type != "DequantizeLinear" or node.inputs[0] is None or node.inputs[1] is None:
            continue
        stored, scale = node.inputs[0], node.inputs[1].const_value
        before = stored.producer()
        if scale is None or (before is None and stored.const_value is None):
            continue
        step = float(scale.numpy().astype(np.float64).max())
        if stored.dtype is not None and stored.dtype.name.startswith("FLOAT8"):
            found[node.outputs[0].name or ""] = DEVIATION * E4M3
            continue
        if before is None:
            assert stored.const_value is not None
            values = step * stored.const_value.numpy().astype(np.float64)
        else:
            values = values_of((before.inputs[0].name if before.inputs[0] is not None else "") or "")
        size = float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))
        found[node.outputs[0].name or ""] = step / math.sqrt(12) / size if size else 0.0
    return found
