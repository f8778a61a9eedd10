"""The products behind the pooling: one row for each image, from which the outputs are made.

Such a product does next to none of the work, and its errors are the outputs' own: what happens to a single token ahead
of the pooling is averaged away, what happens here is not. TensorRT sums fp16 products less exactly than fp32
(`benchmarks/notes.md`, "What fp16 plans lose").
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from trtship.graphs.operators import PRODUCTS

if TYPE_CHECKING:
    import onnx_ir


LARGEST = 1 << 22
"""Weights of a head. Each takes two bytes more to read in fp32: of so many 8 MiB, 3 us of an H100's 3 TB/s, where a
Swin-T at batch 1 takes 450. Heads of 21,000 classes have 16 to 32 million, and stay low."""


def heads(model: onnx_ir.Model) -> set[onnx_ir.Node]:
    """The MatMul and Gemm nodes that multiply rows [B, K], one for each image, with a constant. What made these rows of
    a larger tensor (a pooling, the choice of a class token) is ahead of them without a product between, and no product
    is behind them. The graph's types and shapes are known."""
    return {node for node in model.graph if _multiplies_rows(node) and _is_last(node) and _is_behind_pooling(node)}


def _multiplies_rows(node: onnx_ir.Node) -> bool:
    if node.op_type not in ("MatMul", "Gemm") or _rank(node.inputs[0]) != 2:
        return False
    weight = node.inputs[1]
    if weight is None or not weight.is_initializer() or weight.is_graph_input() or weight.const_value is None:
        return False
    return weight.const_value.size <= LARGEST


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
    """Whether what it multiplies comes, without a product between, from a tensor of more dimensions, of which each
    image gave one row."""
    seen: set[onnx_ir.Value] = set()
    before = [node.inputs[0]]
    while before:
        value = before.pop()
        maker = None if value is None or value in seen else value.producer()
        if value is None or maker is None or maker.op_type in PRODUCTS:
            continue
        seen.add(value)
        larger = [one for one in maker.inputs if one is not None and (_rank(one) or 0) > 2]
        if any(_keeps_rows(maker, one, value) for one in larger):
            return True
        before += [] if larger else maker.inputs
    return False


def _keeps_rows(maker: onnx_ir.Node, larger: onnx_ir.Value, rows: onnx_ir.Value) -> bool:
    """Whether `rows` [B, K] has a row for each image of `larger`: a Reshape may make one of each token."""
    if maker.op_type == "Flatten":
        return maker.attributes.get_int("axis", 1) == 1
    if maker.op_type != "Reshape":
        return True
    assert larger.shape is not None
    assert rows.shape is not None
    sizes = [size for size in (*larger.shape[1:], rows.shape[1]) if isinstance(size, int)]
    return len(sizes) == len(larger.shape) and math.prod(sizes[:-1]) == sizes[-1]


def _rank(value: onnx_ir.Value | None) -> int | None:
    return None if value is None or value.shape is None else len(value.shape)
