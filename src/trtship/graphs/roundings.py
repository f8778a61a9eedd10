"""How many roundings one ONNX operator performs one after the other, and in which number format."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trtship.graphs.operators import ACCUMULATING, EXACT, POOLING, PRODUCTS, REDUCTIONS
from trtship.spec import Precision

if TYPE_CHECKING:
    import onnx_ir

FULL, TF32 = Precision.FP32.unit_roundoff, Precision.TF32.unit_roundoff
UNKNOWN_SIZE = 1024
"""Taken for the terms of a sum over a dimension whose size is not known; generous for a vision model."""
FUNCTION = 4
"""fp32 roundings in exp, erf, tanh and the like: CUDA's are good to 2 units in the last place, each two roundings."""
FLOATS = ("FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE")
ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div", "Sum", "Mean", "Sqrt", "Reciprocal"})


@dataclass(frozen=True)
class Rounding:
    """Sequential roundings: `low` at the graph's reduced precision, `full` in fp32, `tf32` of a product's fp32 operands
    in a graph of a lower precision; `variance` is sum of u^2."""

    low: int = 0
    full: int = 0
    variance: float = 0.0
    tf32: int = 0

    def __add__(self, other: Rounding) -> Rounding:
        return Rounding(
            self.low + other.low, self.full + other.full, self.variance + other.variance, self.tf32 + other.tf32
        )


def roundings_of(node: onnx_ir.Node, precision: Precision) -> Rounding:
    """The roundings of one node, whose tensors have their types and, where known, their shapes.

    A product or reduction of K terms accumulates in fp32 whatever its inputs are, one term after the other (blocked
    sums are better). The k-th partial sum of random terms is about sqrt(k/K) of the whole, and so is its rounding
    error: the K roundings weigh as K/2. The result is rounded to the output's type. A constant operand was rounded
    to that type before: one more. TF32 rounds both operands of a product: those of fp32 in all precisions but fp32.
    """
    kinds = [value.dtype.name for value in node.outputs if value.dtype is not None]
    if node.op_type in EXACT or not any(kind in FLOATS for kind in kinds):
        return Rounding()
    is_low = any(kind in ("FLOAT16", "BFLOAT16") for kind in kinds)
    full = _accumulations(node)
    low, tf32 = _constants(node) + 1 if is_low else 0, 0
    if not is_low:
        full = full + 1 if node.op_type != "Cast" else 0
        operands = 2 if precision.tf32 and node.op_type in PRODUCTS else 0
        low, tf32 = (operands, 0) if precision is Precision.TF32 else (0, operands)
    u = precision.unit_roundoff
    return Rounding(low, full, low * u * u + tf32 * TF32 * TF32 + full * FULL * FULL, tf32)


def _accumulations(node: onnx_ir.Node) -> int:
    """Weight of the fp32 roundings inside the operator, the final one apart; mean and variance are two sums."""
    op = node.op_type
    if op in PRODUCTS:
        return _terms_of_product(node) // 2
    if op in REDUCTIONS:
        return _terms_of_reduction(node.inputs[0], node.outputs[0]) // 2
    if op in POOLING:
        return math.prod(node.attributes.get_ints("kernel_shape", [UNKNOWN_SIZE])) // 2
    if op in ACCUMULATING:
        scale = node.inputs[1] if len(node.inputs) > 1 and op.endswith("Normalization") else None
        return _known((node.inputs[0], -1), (scale, -1)) + FUNCTION
    return 0 if op in ARITHMETIC or op == "Cast" else FUNCTION


def _terms_of_product(node: onnx_ir.Node) -> int:
    if node.op_type == "MatMul":
        return _known((node.inputs[0], -1), (node.inputs[1], -2))
    if node.op_type == "Gemm":
        return _known((node.inputs[0], 0 if node.attributes.get_int("transA", 0) else -1))
    weight = _shape(node.inputs[1]) if node.op_type != "Einsum" else None
    if weight is None:
        return UNKNOWN_SIZE
    return math.prod(weight[1:]) if node.op_type == "Conv" else math.prod(weight) // max(weight[1], 1)


def _constants(node: onnx_ir.Node) -> int:
    return int(any(value is not None and value.const_value is not None and _is_float(value) for value in node.inputs))


def _is_float(value: onnx_ir.Value) -> bool:
    return value.dtype is not None and value.dtype.name in FLOATS


def _shape(value: onnx_ir.Value | None) -> list[int] | None:
    if value is None or value.shape is None:
        return None
    return [size if isinstance(size, int) else UNKNOWN_SIZE for size in value.shape]


def _known(*places: tuple[onnx_ir.Value | None, int]) -> int:
    """The size at the first of these (tensor, axis) that has one."""
    for value, axis in places:
        if value is not None and value.shape is not None and len(value.shape) >= abs(axis):
            size = value.shape[axis]
            if isinstance(size, int):
                return size
    return UNKNOWN_SIZE


def _terms_of_reduction(before: onnx_ir.Value | None, after: onnx_ir.Value | None) -> int:
    """Sizes that are not known count as `UNKNOWN_SIZE` together, however many of them the sum runs over."""
    if before is None or before.shape is None or after is None or after.shape is None:
        return UNKNOWN_SIZE
    known = [size for size in before.shape if isinstance(size, int)]
    left = [size for size in after.shape if isinstance(size, int)]
    has_unknown = len(before.shape) - len(known) > len(after.shape) - len(left)
    return max(1, math.prod(known) // max(math.prod(left), 1)) * (UNKNOWN_SIZE if has_unknown else 1)
