"""Write outer products of positions as multiplications, which tensor cores would do in fewer digits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtship.graphs.positions import positions

if TYPE_CHECKING:
    import onnx_ir


def write_outer_products(model: onnx_ir.Model) -> int:
    """Make a Mul of each MatMul of one term, [..., N, 1] x [..., 1, M], that has a position among its operands.

    Rotary embeddings multiply positions with frequencies so. TensorRT multiplies fp32 matrices in TF32 wherever that is
    allowed, in all precisions but fp32: 11 bits, of an angle of 1000 radians half a radian is lost. A Mul of fp32
    tensors is exact to 24 bits. Edits `model`, whose types and shapes are inferred; returns how many were written.
    """
    import onnx_ir as ir

    known, count = positions(model.graph), 0
    for node in list(model.graph):
        if node.op_type == "MatMul" and any(v in known for v in node.inputs) and _has_one_term(node):
            multiply = ir.Node("", "Mul", node.inputs, name=node.name)
            new, old = multiply.outputs[0], node.outputs[0]
            new.name, new.shape, new.type = old.name, old.shape, old.type
            old.name = f"{old.name}/matmul"
            old.replace_all_uses_with(new, replace_graph_outputs=True)
            model.graph.insert_after(node, multiply)
            model.graph.remove(node, safe=True)
            count += 1
    return count


def _has_one_term(node: onnx_ir.Node) -> bool:
    shapes = [value.shape if value is not None else None for value in node.inputs]
    if any(shape is None or len(shape) < 2 for shape in shapes):
        return False
    left, right = shapes
    return left is not None and right is not None and (left[-1] == 1 or right[-2] == 1)
