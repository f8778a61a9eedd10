"""The error that a normalisation makes of its own mean: nothing in its result, or in its input, has that size.

(x - mean) / sqrt(variance + epsilon) loses what mean and x have in common. The mean is a sum of n terms, rounded n
times, so that the result is off by its error over the square root: for a flat picture, whose variance is zero, by
mean / sqrt(epsilon) times that error, while the result itself is zero. A norm that is written out makes it by itself,
at its ReduceMean.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

import numpy as np

from trtship.graphs.roundings import FULL, UNKNOWN_SIZE

if TYPE_CHECKING:
    import onnx_ir

CENTERED = frozenset({"InstanceNormalization", "LayerNormalization", "GroupNormalization", "MeanVarianceNormalization"})
"""Operators that subtract a mean which they compute, in fp32 whatever their input is."""
MVN_EPSILON = 1e-9
"""In the definition of MeanVarianceNormalization."""


class Erring(Protocol):
    """Makes the nodes that give a value an error of this relative size, and returns them."""

    def __call__(self, value: onnx_ir.Value, disturbed: onnx_ir.Value, size: float) -> list[onnx_ir.Node]: ...


def mean_error(node: onnx_ir.Node) -> float:
    """Return the relative size of the error of the mean that `node` subtracts, in units of `DEVIATION`; 0 where it
    subtracts none, or its rank is not known. The mean of n terms has the weight of n / 2 roundings, as in
    `trtship.graphs.roundings`."""
    axes = _axes(node)
    x = node.inputs[0] if axes is not None else None
    if axes is None or x is None or x.shape is None:
        return 0.0
    sizes = [size if isinstance(size, int) else UNKNOWN_SIZE for size in (x.shape[axis] for axis in axes)]
    if node.op_type == "GroupNormalization":
        sizes.append(max(1, _channels(x) // node.attributes.get_int("num_groups", 1)))
    return FULL * math.sqrt(max(1, math.prod(sizes) // 2))


def shifted(
    graph: onnx_ir.Graph, node: onnx_ir.Node, *, new: onnx_ir.Value, size: float, opset: int, erring: Erring
) -> list[onnx_ir.Node]:
    """Return the nodes that make `new` of the result of `node`, whose mean has an error of this size."""
    import onnx_ir as ir

    nodes: list[onnx_ir.Node] = []

    def made(op: str, *inputs: onnx_ir.Value | None, **attributes: int) -> onnx_ir.Value:
        nodes.append(ir.Node("", op, inputs, [ir.AttrInt64(k, v) for k, v in attributes.items()]))
        return nodes[-1].outputs[0]

    def constant(array: np.ndarray) -> onnx_ir.Value:
        tensor = ir.tensor(array, name=f"{node.outputs[0].name}/mean/{len(nodes)}/{array.dtype}{array.size}")
        if tensor.name not in graph.initializers:
            value = ir.Value(
                name=tensor.name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
            )
            graph.register_initializer(value)
        return graph.initializers[tensor.name or ""]

    def mean_of(value: onnx_ir.Value, axes: list[int]) -> onnx_ir.Value:
        if opset >= 18:
            return made("ReduceMean", value, constant(np.array(axes, np.int64)), keepdims=1)
        nodes.append(ir.Node("", "ReduceMean", [value], [ir.AttrInt64s("axes", axes), ir.AttrInt64("keepdims", 1)]))
        return nodes[-1].outputs[0]

    x, op, axes = node.inputs[0], node.op_type, _axes(node)
    assert x is not None
    assert x.shape is not None
    assert axes is not None
    rank, groups = len(x.shape), node.attributes.get_int("num_groups", 1)
    data = x
    if op == "GroupNormalization":
        data, axes = made("Reshape", x, constant(np.array([0, groups, -1], np.int64))), [2]
    mean = mean_of(data, axes)
    centered = made("Sub", data, mean)
    variance = mean_of(made("Mul", centered, centered), axes)
    epsilon = MVN_EPSILON if op == "MeanVarianceNormalization" else node.attributes.get_float("epsilon", 1e-5)
    deviation = made("Sqrt", made("Add", variance, constant(np.array(epsilon, np.float32))))
    wrong = ir.Value(name=f"{node.outputs[0].name}/mean/noisy")
    nodes += erring(mean, wrong, size)
    shift = made("Div", made("Sub", wrong, mean), deviation)
    if op == "GroupNormalization":
        each = constant(np.array([1, 1, _channels(x) // groups], np.int64))
        shape = constant(np.array([0, _channels(x), *[1] * (rank - 2)], np.int64))
        shift = made("Reshape", made("Expand", shift, each), shape)
    scale = node.inputs[1] if len(node.inputs) > 1 else None
    if scale is not None:
        if op != "LayerNormalization":
            scale = made("Reshape", scale, constant(np.array([-1, *[1] * (rank - 2)], np.int64)))
        if op != "GroupNormalization" or _channels(x) == _length(node.inputs[1]):
            shift = made("Mul", shift, scale)
    nodes.append(ir.Node("", "Add", [node.outputs[0], shift], outputs=[new]))
    return nodes


def _axes(node: onnx_ir.Node) -> list[int] | None:
    """The axes of the mean; of a GroupNormalization those beside the channels. None where they are not known."""
    x, op = node.inputs[0] if node.inputs else None, node.op_type
    if op not in CENTERED or x is None or x.shape is None or x.dtype is None:
        return None
    rank = len(x.shape)
    if op == "MeanVarianceNormalization":
        return list(node.attributes.get_ints("axes", [0, 2, 3]))
    if op == "LayerNormalization":
        return list(range(node.attributes.get_int("axis", -1) % rank, rank))
    return list(range(2, rank)) if op == "InstanceNormalization" or _channels(x) else None


def _channels(x: onnx_ir.Value) -> int:
    """0 where that is not known."""
    size = x.shape[1] if x.shape is not None and len(x.shape) > 1 else 0
    return size if isinstance(size, int) else 0


def _length(value: onnx_ir.Value | None) -> int:
    size = value.shape[0] if value is not None and value.shape is not None and len(value.shape) else 0
    return size if isinstance(size, int) else 0
