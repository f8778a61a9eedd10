"""The attention blocks of a graph as it is built: a Softmax with a matrix product on either side of it.

`trtship.passes.attention` takes fp32 graphs apart before they are rewritten; here the graph is finished, with casts in
it, and nothing but the block's place and sizes is wanted.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise, takewhile
from typing import TYPE_CHECKING

from trtship.passes.rewrite import PASS_KEY

if TYPE_CHECKING:
    import onnx_ir

SCOPES_KEY = "pkg.torch.onnx.name_scopes"
PRODUCTS = frozenset({"MatMul", "Einsum"})
BEFORE = frozenset(
    {"Add", "Sub", "Mul", "Div", "Where", "Cast", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Identity", "Clip"}
)
AFTER = frozenset({"Cast", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Identity", "Dropout", "Mul", "Where"})
"""What may stand between the product of q and k and the softmax, and between that and the product with v."""


@dataclass(frozen=True)
class Block:
    """softmax(... q k^T ...) v: its two products, its softmax, and all its nodes from the first to the last."""

    product: onnx_ir.Node
    softmax: onnx_ir.Node
    context: onnx_ir.Node
    nodes: tuple[onnx_ir.Node, ...]

    @property
    def name(self) -> str:
        """The module's path where the nodes tell it, `layers.0.blocks.1.attn`; else the softmax's own name."""
        paths = [_module_of(node) for node in (self.product, self.softmax, self.context)]
        steps = zip(*(path for path in paths if path is not None), strict=False)
        common = [step[0] for step in takewhile(lambda step: len(set(step)) == 1, steps)]
        return ".".join(common) or _original_name(self.softmax) or self.softmax.outputs[0].name or "Softmax"


def attention_blocks(graph: onnx_ir.Graph) -> Iterator[Block]:
    """In the order of the graph's nodes."""
    order = {node: index for index, node in enumerate(graph)}
    for softmax in order:
        if softmax.op_type != "Softmax":
            continue
        before = _way(softmax, _producers, BEFORE)
        after = _way(softmax, _consumers, AFTER)
        if before and after:
            nodes = sorted({softmax, *before, *after}, key=order.__getitem__)
            yield Block(before[-1], softmax, after[-1], tuple(nodes))


def _way(
    start: onnx_ir.Node, step: Callable[[onnx_ir.Node], Iterable[onnx_ir.Node]], passing: frozenset[str]
) -> list[onnx_ir.Node]:
    """The shortest way from `start`, without it, over `passing` operators to a product of two tensors that are both
    computed; empty where there is none."""
    ways = [[node] for node in step(start)]
    seen = {way[0] for way in ways}
    while ways:
        way = ways.pop(0)
        node = way[-1]
        if node.op_type in PRODUCTS and all(_computed(value) for value in node.inputs):
            return way
        if node.op_type in passing:
            further = [one for one in step(node) if one not in seen]
            seen.update(further)
            ways += [[*way, one] for one in further]
    return []


def _producers(node: onnx_ir.Node) -> list[onnx_ir.Node]:
    found = [value.producer() for value in node.inputs if value is not None]
    return [one for one in found if one is not None]


def _consumers(node: onnx_ir.Node) -> list[onnx_ir.Node]:
    return [user for value in node.outputs for user in value.consumers()]


def _computed(value: onnx_ir.Value | None) -> bool:
    node = value.producer() if value is not None else None
    return value is not None and not value.is_initializer() and (node is None or node.op_type != "Constant")


def _module_of(node: onnx_ir.Node) -> list[str] | None:
    """`["layers", "0", "attn"]`, from the scopes that the dynamo exporter records, or from the name that the
    TorchScript exporter gives, `/layers/layers.0/attn/MatMul`; None where there is neither."""
    try:
        scopes = ast.literal_eval(node.metadata_props.get(SCOPES_KEY, "[]"))
        path = str(scopes[-2]) if len(scopes) > 1 else ""
    except (ValueError, SyntaxError, TypeError):
        path = ""
    if path:
        return path.split(".")
    name = _original_name(node)
    parts = name.strip("/").split("/")[:-1] if name.startswith("/") else []
    kept = [part for part, after in pairwise([*parts, ""]) if not after.startswith(f"{part}.")]
    return ".".join(kept).split(".") if kept else None


def _original_name(node: onnx_ir.Node) -> str:
    """The node's name, or that of the node which a pass replaced by it."""
    name, made_by = node.name or "", node.metadata_props.get(PASS_KEY)
    return name.split(f"/{made_by}/")[0] if made_by else name
