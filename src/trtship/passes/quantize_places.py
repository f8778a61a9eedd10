"""Where Q/DQ goes: the products with constant weights, and the tensors that they read.

Kept out by default are the first product (the patch embedding, which reads pictures) and the last (the head, whose
results are the network's): they are small, and an error there reaches everything, or nothing can mend it. Products of
two activations, as attention has, stay out too: TensorRT fuses both of them with the softmax in fp16.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from trtship.errors import SpecError
from trtship.graphs.operators import MOVES
from trtship.graphs.storage import load_graph

if TYPE_CHECKING:
    import onnx_ir

Place = Literal["first", "last"]
WEIGHT_SLOTS = {"MatMul": 1, "Gemm": 1, "Conv": 1}
"""Operator -> the input that its weights are."""
BESIDE = MOVES | {"Add", "Sub", "Mul", "Div", "Cast", "Relu"}
"""What stands between a graph's input and its first product, or its last product and an output, without being one."""


@dataclass(frozen=True)
class Product:
    """`node` multiplies `activation` with the constant `weight`, whose dimension `axis` is the output's channels."""

    node: onnx_ir.Node
    activation: onnx_ir.Value
    weight: onnx_ir.Value
    axis: int


def name_of(node: onnx_ir.Node) -> str:
    """The node's name, or its first output's where it has none."""
    return node.name or node.outputs[0].name or ""


def products_of(graph: onnx_ir.Graph) -> list[Product]:
    """Every product of a variable fp32 tensor with fp32 weights, in the graph's order."""
    found = []
    for node in graph:
        slot = WEIGHT_SLOTS.get(node.op_type)
        if slot is None or node.domain not in ("", "ai.onnx"):
            continue
        activation, weight = node.inputs[0], node.inputs[slot]
        if activation is None or weight is None or weight.const_value is None or weight.is_graph_input():
            continue
        if activation.const_value is not None or weight.const_value.dtype.name != "FLOAT":
            continue
        axis = _channels(node, len(weight.const_value.shape))
        if axis is not None:
            found.append(Product(node, activation, weight, axis))
    return found


def _channels(node: onnx_ir.Node, dimensions: int) -> int | None:
    """TensorRT scales a product's weights along one dimension: a batch of weights has none."""
    if node.op_type == "Conv":
        return 0
    if dimensions != 2 or node.attributes.get_int("transA", 0):
        return None
    return 0 if node.attributes.get_int("transB", 0) else 1


def ends_of(graph: onnx_ir.Graph, products: Iterable[Product]) -> dict[onnx_ir.Node, Place]:
    """The products that see the graph's inputs, or whose results are its outputs, with little in between."""
    nodes = {product.node for product in products}
    near: set[onnx_ir.Value] = {value for value in graph.inputs if not value.is_initializer()}
    found: dict[onnx_ir.Node, Place] = {}
    for node in graph:
        if not any(value in near for value in node.inputs if value is not None):
            continue
        if node in nodes:
            found[node] = "first"
        elif node.op_type in BESIDE:
            near.update(node.outputs)
    late = set(graph.outputs)
    for node in reversed(graph):
        if not any(value in late for value in node.outputs):
            continue
        if node in nodes:
            found.setdefault(node, "last")
        elif node.op_type in BESIDE:
            late.update(value for value in node.inputs if value is not None)
    return found


def chosen_products(graph: onnx_ir.Graph, *, exclude: Collection[str] = ()) -> tuple[list[Product], dict[str, str]]:
    """The products to quantize, and of the others (by name) why they are left out. Raises SpecError for a name in
    `exclude` that no node has."""
    names = {name_of(node) for node in graph}
    for name in sorted(set(exclude) - names):
        raise SpecError(
            f"there is no node {name!r} to leave out", why="the graph has none of that name", do="check the name"
        )
    products = products_of(graph)
    ends = ends_of(graph, products)
    chosen, left = [], {}
    for product in products:
        name = name_of(product.node)
        if name in exclude:
            left[name] = "excluded by name"
        elif product.node in ends:
            left[name] = {"first": "reads the graph's input", "last": "makes the graph's output"}[ends[product.node]]
        else:
            chosen.append(product)
    return chosen, left


def tensors_to_calibrate(source: Path, *, exclude: Collection[str] = ()) -> tuple[str, ...]:
    """Names of the tensors in the fp32 graph at `source` whose ranges `to_quantized` needs, each once.

    Raises GraphError, and SpecError for a name in `exclude` that no node has.
    """
    chosen, _ = chosen_products(load_graph(source).graph, exclude=exclude)
    return tuple(dict.fromkeys(product.activation.name or "" for product in chosen))
