"""Where Q/DQ goes: the products with constant weights, and the tensors that they read.

Kept out are the first product (the patch embedding, which reads pictures) and the last (the head, whose results are the
network's): they are small, and an error there reaches everything, or nothing can mend it. Products of two activations,
as attention has, stay out too: TensorRT fuses both of them with the softmax in fp16.

A product in 8 bits has no epilogue in TensorRT for RTX 1.6 (benchmarks/notes.md): what follows it, GELU above all, is
a kernel of its own, which reads and writes what the fused fp16 product never puts into memory. The scope `fused` so
leaves out the product ahead of a GELU; and for int8 the one behind it too, since of the two roundings only fp8's joins
the fp16 product's epilogue. Then a plan has as many kernels as in fp16. Convolutions stay out of it as well: ResNet-50
has 58 kernels in fp16 and 105 in fp8, and in int8 it is not built at all.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from trtship.errors import SpecError
from trtship.graphs.operators import MOVES
from trtship.graphs.storage import load_graph
from trtship.passes.gelu import gelu_at
from trtship.spec import Precision

if TYPE_CHECKING:
    import onnx_ir

Scope = Literal["fused", "all", "weights"]
"""`all` quantizes every product but the first and the last, `fused` those of them that cost no kernel, `weights` the
weights of all of them and no activations."""
SCOPES: tuple[Scope, ...] = get_args(Scope)
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


def parse_scope(text: str) -> Scope:
    """`"fused"`, `"all"` or `"weights"`. Raises SpecError."""
    for scope in SCOPES:
        if text == scope:
            return scope
    raise SpecError(f"--quantize {text!r} is no scope", why=f"it takes {', '.join(SCOPES)}", do="name one of them")


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
    if dimensions != 2 or node.attributes.get_int("transA", False):
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


def beside_gelus(products: Iterable[Product]) -> tuple[set[onnx_ir.Node], set[onnx_ir.Node]]:
    """The products ahead of a GELU, but for a sum with a bias, and those behind one."""
    ahead: set[onnx_ir.Node] = set()
    behind: set[onnx_ir.Node] = set()
    nodes = {product.node for product in products}
    for gelu in (found for node in _graph_of(nodes) if (found := gelu_at(node)) is not None):
        before = gelu.x.producer()
        while before is not None and before not in nodes and before.op_type in BESIDE:
            before = next((v.producer() for v in before.inputs if v is not None and v.producer() is not None), None)
        if before in nodes and before is not None:
            ahead.add(before)
        values = {gelu.end.outputs[0]}
        while values:
            users = {user for value in values for user in value.consumers()}
            behind |= users & nodes
            values = {value for user in users - nodes if user.op_type in MOVES for value in user.outputs}
    return ahead, behind


def _graph_of(nodes: Collection[onnx_ir.Node]) -> Iterable[onnx_ir.Node]:
    graph = next(iter(nodes)).graph if nodes else None
    return tuple(graph) if graph is not None else ()


def chosen_products(
    graph: onnx_ir.Graph,
    precision: Precision,
    *,
    scope: Scope = "fused",
    exclude: Collection[str] = (),
    convolutions: bool = True,
) -> tuple[list[Product], dict[str, str]]:
    """The products to quantize, and of the others (by name) why they are left out; `convolutions` says whether the
    family has any in 8 bits. Raises SpecError for a name in `exclude` that no node has."""
    names = {name_of(node) for node in graph}
    for name in sorted(set(exclude) - names):
        raise SpecError(
            f"there is no node {name!r} to leave out", why="the graph has none of that name", do="check the name"
        )
    products = products_of(graph)
    reasons: dict[onnx_ir.Node, str] = {}
    if scope == "fused":
        ahead, behind = beside_gelus(products)
        if precision is Precision.INT8:
            reasons.update(
                dict.fromkeys(behind, "rounding to int8 would be taken out of the fused product ahead of it")
            )
        reasons.update(dict.fromkeys(ahead, "its GELU would be a kernel of its own"))
        reasons.update({p.node: "in 8 bits it would add kernels" for p in products if p.node.op_type == "Conv"})
    if not convolutions and scope != "weights":
        reasons.update({p.node: "there is no such kernel" for p in products if p.node.op_type == "Conv"})
    texts: dict[Place, str] = {"first": "it reads the graph's input", "last": "it makes the graph's output"}
    reasons.update({node: texts[place] for node, place in ends_of(graph, products).items()})
    reasons.update({p.node: "excluded by name" for p in products if name_of(p.node) in exclude})
    chosen = [product for product in products if product.node not in reasons]
    return chosen, {name_of(p.node): reasons[p.node] for p in products if p.node in reasons}


def tensors_to_calibrate(source: Path, *, exclude: Collection[str] = ()) -> tuple[str, ...]:
    """Names of the tensors in the fp32 graph at `source` that `to_quantized` may need the ranges of, whatever its
    precision and scope, each once. Raises GraphError, and SpecError for a name in `exclude` that no node has."""
    chosen, _ = chosen_products(load_graph(source).graph, Precision.INT8, scope="all", exclude=exclude)
    return tuple(dict.fromkeys(product.activation.name or "" for product in chosen))
