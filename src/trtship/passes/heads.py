"""The products behind the pooling: one row for each image, from which the outputs are made.

Such a product does next to none of the work, and its errors are the outputs' own: what happens to a single token ahead
of the pooling is averaged away, what happens here is not. TensorRT sums fp16 products less exactly than fp32
(`benchmarks/notes.md`, "What fp16 plans lose").
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtship.graphs.operators import PRODUCTS

if TYPE_CHECKING:
    import onnx_ir


def heads(model: onnx_ir.Model) -> set[onnx_ir.Node]:
    """The MatMul and Gemm nodes that multiply rows [B, K] with a constant. What made these rows of a larger tensor (a
    pooling, the choice of a class token) is ahead of them without a product between, and no product is behind them.
    The graph's types and shapes are known."""
    return {node for node in model.graph if _multiplies_rows(node) and _is_last(node) and _is_behind_pooling(node)}


def _multiplies_rows(node: onnx_ir.Node) -> bool:
    if node.op_type not in ("MatMul", "Gemm") or _rank(node.inputs[0]) != 2:
        return False
    weight = node.inputs[1]
    return weight is not None and weight.is_initializer() and not weight.is_graph_input()


def _is_last(node: onnx_ir.Node) -> bool:
    """Whether no product is behind it."""
    seen: set[onnx_ir.Node] = set()
    after = [user for value in node.outputs for user in value.consumers()]
    while after:
        user = after.pop()
        if user.op_type in PRODUCTS:
            return False
        if user not in seen:
            seen.add(user)
            after += [further for value in user.outputs for further in value.consumers()]
    return True


def _is_behind_pooling(node: onnx_ir.Node) -> bool:
    """Whether what it multiplies comes, without a product between, from a tensor of more dimensions."""
    seen: set[onnx_ir.Value] = set()
    before = [node.inputs[0]]
    while before:
        value = before.pop()
        if value is None or value in seen:
            continue
        seen.add(value)
        if (_rank(value) or 0) > 2:
            return True
        maker = value.producer()
        if maker is not None and maker.op_type not in PRODUCTS:
            before += maker.inputs
    return False


def _rank(value: onnx_ir.Value | None) -> int | None:
    return None if value is None or value.shape is None else len(value.shape)
