"""GELU in fp16 and bf16 graphs, as x / (1 + exp(-x p(x^2))) in fp32 between two casts.

TensorRT fuses this form into the matrix product ahead of it, as it does the error function; but that takes so many
instructions there that the product takes nearly twice as long. (The sigmoid as an operator of its own is not fused.)

With p(u) = c0 + c1 min(u, 25) + c2 min(u, 25)^2, x * sigmoid(x p(x^2)) is the exact GELU but for at most 2.6e-5 (`C`,
fitted: see `benchmarks/gelu_coefficients.py`). That is less than one rounding of 1 + erf(x / sqrt 2) to fp16, which the
usual form contains, gives x / 2 times: up to 4.5e-4. A test goes through all fp16 numbers.

GELU's tanh approximation is x * sigmoid(2 sqrt(2 / pi) (x + 0.044715 x^3)), exactly; where a model asks for it, it
gets it (Hendrycks and Gimpel 2016).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trtship.passes.rewrite import Editor, only_user

if TYPE_CHECKING:
    import onnx_ir

NAME = "gelu"
C = (1.5950157683398274, 0.07401129230793112, -0.000703033625712629)
"""Coefficients of 1, u and u^2 for u = x^2, at most `LIMIT`."""
LIMIT = 25.0
SLOPE = 2 * math.sqrt(2 / math.pi)
TANH = (SLOPE, SLOPE * 0.044715)
CLOSE = 2e-3
"""How far a constant of the graph may be off, relative: bf16 has 8 bits."""


@dataclass(frozen=True)
class Gelu:
    """`end` is the node that makes the result out of `x`."""

    x: onnx_ir.Value
    end: onnx_ir.Node
    is_tanh: bool


def write_gelus(model: onnx_ir.Model) -> int:
    """Rewrites every GELU of `model` whose type is fp16 or bf16, and returns how many there were."""
    import onnx_ir as ir
    from onnx_ir.passes import common

    editor, count = Editor(model, NAME), 0
    for node in list(model.graph):
        found = gelu_at(node)
        if found is None or found.x.dtype not in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
            continue
        _rewrite(found, editor)
        count += 1
    if count:
        common.RemoveUnusedNodesPass()(model)
    return count


def _rewrite(found: Gelu, editor: Editor) -> None:
    import numpy as np
    import onnx_ir as ir

    end, dtype = found.end, found.x.dtype
    assert dtype is not None

    def node(op: str, *inputs: onnx_ir.Value, **attributes: Any) -> onnx_ir.Value:
        value = editor.node(op, inputs, before=end, **attributes)
        value.type = ir.TensorType(dtype if attributes.get("to") == int(dtype) else ir.DataType.FLOAT)
        value.shape = end.outputs[0].shape
        return value

    def number(value: float, name: str) -> onnx_ir.Value:
        return editor.constant(np.array(value, np.float32), name)

    x = node("Cast", found.x, to=int(ir.DataType.FLOAT))
    square = node("Mul", x, x)
    if not found.is_tanh:
        square = node("Min", square, number(LIMIT, "limit"))
    coefficients = TANH if found.is_tanh else C
    p = number(coefficients[-1], "c")
    for coefficient in reversed(coefficients[:-1]):
        p = node("Add", node("Mul", p, square), number(coefficient, "c"))
    power = node("Exp", node("Neg", node("Mul", p, x)))
    value = node("Div", x, node("Add", power, number(1, "one")))
    editor.replace(end.outputs[0], node("Cast", value, to=int(dtype)))


def gelu_at(node: onnx_ir.Node) -> Gelu | None:
    """The GELU that `node`, its operator or the error function in it, belongs to."""
    if node.op_type == "Gelu" and node.inputs[0] is not None:
        return Gelu(node.inputs[0], node, node.attributes.get_string("approximate", "none") == "tanh")
    return _written_out(node) if node.op_type == "Erf" else None


def _written_out(erf: onnx_ir.Node) -> Gelu | None:
    """x * (1 + erf(x / sqrt 2)) / 2, its factors in any order."""
    inner = erf.inputs[0].producer() if erf.inputs[0] is not None else None
    scaled = _times(inner, math.sqrt(0.5))
    add = only_user(erf.outputs[0])
    if scaled is None or add is None or add.op_type != "Add" or _constant_beside(add, erf.outputs[0]) != 1:
        return None
    value, factor, has_x = add.outputs[0], 1.0, False
    while factor != 0.5 or not has_x:
        node = only_user(value)
        if node is None or node.op_type not in ("Mul", "Div"):
            return None
        number = _factor(node, value)
        if number is not None:
            factor *= number
        else:
            other = next((one for one in node.inputs if one is not value), None)
            half = _times(other.producer(), 0.5) if other is not None else None
            if node.op_type == "Div" or has_x or not (other is scaled or half is scaled):
                return None
            factor *= 1.0 if other is scaled else 0.5
            has_x = True
        if factor not in (1.0, 0.5):
            return None
        value = node.outputs[0]
    producer = value.producer()
    return None if producer is None else Gelu(scaled, producer, is_tanh=False)


def _times(node: onnx_ir.Node | None, wanted: float) -> onnx_ir.Value | None:
    """What `node` multiplies by the number `wanted`, or divides by one over it."""
    for value in node.inputs if node is not None and node.op_type in ("Mul", "Div") else ():
        number = _factor(node, value) if node is not None and value is not None else None
        if number is not None and math.isclose(number, wanted, rel_tol=CLOSE):
            return value
    return None


def _factor(node: onnx_ir.Node, value: onnx_ir.Value) -> float | None:
    """The number by which a Mul or Div multiplies `value`; None where it does no such thing."""
    number = _constant_beside(node, value)
    if node.op_type == "Mul" or number is None:
        return number
    return 1 / number if node.inputs[0] is value and number else None


def _constant_beside(node: onnx_ir.Node, value: onnx_ir.Value) -> float | None:
    others = [one for one in node.inputs if one is not value]
    if len(others) != 1 or others[0] is None or others[0].const_value is None or others[0].const_value.size != 1:
        return None
    return float(others[0].const_value.numpy().item())
