"""Which kernels of a plan run which part of its graph: the plan's layers joined with the ONNX nodes they came from.

The join is by the names that TensorRT records for each layer. Nothing is guessed: what bears no name, or one that
several nodes bear, stays unjoined and is counted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from trtship.engine.attention_blocks import Block, attention_blocks
from trtship.engine.layer_text import Layer
from trtship.engine.layers import PlanLayers
from trtship.graphs import load_graph
from trtship.passes.batches import Batches
from trtship.passes.rewrite import PASS_KEY
from trtship.spec import Record

if TYPE_CHECKING:
    import onnx_ir

State = Literal["fused", "not fused", "unknown"]

PRODUCT_KINDS = ("gemm", "runtime_fusion", "conv", "correlation", "matrixmultiply")
"""Parts of the kinds of layers that compute a matrix product or a convolution, epilogue included. `gemm`,
`runtime_fusion` and `correlation` are TensorRT for RTX's, seen in its logs; the others full TensorRT's."""
MOVING_KINDS = ("reformat", "reshape", "cast", "copy", "shuffle", "slice", "noop", "concat")
MOVING_CODE = re.compile(r"__myl_(?:Cast|Resh|Tran|Move|Repl|Conc|Slic|Copy|Gath)+_myl\d+_\d+")
"""Generated kernels are named after what they do, four letters an operation: these only move and convert data."""


class AttentionKernels(Record, frozen=True):
    """An attention block of the graph and what it runs in.

    `nodes` are the ONNX nodes from the product q k^T to the product with v, `maps` the attention maps that an image
    has (windows times heads), `tokens` the rows of one and `depth` the channels of a head; None where the graph does
    not tell. `state` is `fused` where one kernel, `fused_in`, holds both products and the softmax, and `unknown` where
    TensorRT names no layer for one of them. `kernels` are all the layers that hold any of the nodes.
    """

    name: str
    nodes: tuple[str, ...]
    maps: int | None
    tokens: int | None
    depth: int | None
    state: State
    fused_in: str
    kernels: tuple[str, ...]


class Placement(Record, frozen=True):
    """Where the nodes of an operator run: `in_product` within a matrix product's kernel, `apart` in others, of which
    there are `kernels`; `unknown` where TensorRT names no layer for them."""

    nodes: int
    in_product: int
    apart: int
    unknown: int
    kernels: int


class KernelReport(Record, frozen=True):
    """`kinds` counts the layers by their kind, `moving` are those that only move or convert data. `unjoined_layers`
    name no node of the graph, `unjoined_names` are names of nodes that the graph does not have, or not only once.
    `source` and `reason` are those of the plan's list of layers. All are of one optimization profile, whose index is
    `profile`."""

    source: str
    reason: str
    profile: int
    layers: int
    kinds: dict[str, int]
    attention: tuple[AttentionKernels, ...]
    gelu: Placement
    layer_norm: Placement
    moving: tuple[str, ...]
    unjoined_layers: tuple[str, ...]
    unjoined_names: tuple[str, ...]


def kernels_of(graph: Path, plan: PlanLayers, *, profile: int = 0) -> KernelReport:
    """Join a profile's layers with the nodes of the ONNX file that the plan was built from. Raises GraphError."""
    model = load_graph(graph)
    layers = tuple(layer for layer in plan.layers if layer.profile == profile)
    join = _Join(model.graph, layers)
    blocks = tuple(attention_blocks(model.graph))
    batches = Batches(model) if blocks else None
    return KernelReport(
        source=plan.source,
        reason=plan.reason,
        profile=profile,
        layers=len(layers),
        kinds=dict(Counter(layer.kind for layer in layers)),
        attention=tuple(_attention(block, join, batches) for block in blocks if batches is not None),
        gelu=_placement((node for node in model.graph if _is_gelu(node)), join),
        layer_norm=_placement((node for node in model.graph if node.op_type == "LayerNormalization"), join),
        moving=tuple(layer.name for layer in layers if _moves(layer)),
        unjoined_layers=tuple(layer.name for layer in layers if not join.nodes(layer)),
        unjoined_names=tuple(dict.fromkeys(n for layer in layers for n in layer.nodes if n not in join.by_name)),
    )


def node_name(node: onnx_ir.Node) -> str:
    """As TensorRT's ONNX parser calls it: a node without a name goes by its first output's."""
    return node.name or f"node_of_{node.outputs[0].name if node.outputs else ''}"


def _is_gelu(node: onnx_ir.Node) -> bool:
    """One node a GELU: the operator itself, the error function in it, or the exponential in what our pass writes."""
    ours = node.op_type == "Exp" and node.metadata_props.get(PASS_KEY) == "gelu"
    return node.op_type in ("Gelu", "Erf") or ours


class _Join:
    """`by_name` has the nodes whose names are their own; `layers(node)` and `nodes(layer)` are what was joined."""

    def __init__(self, graph: onnx_ir.Graph, layers: tuple[Layer, ...]) -> None:
        self.listed = layers
        counts = Counter(node_name(node) for node in graph)
        self.by_name = {node_name(node): node for node in graph if counts[node_name(node)] == 1}
        self._layers: dict[onnx_ir.Node, list[Layer]] = {}
        for layer in layers:
            for node in self.nodes(layer):
                self._layers.setdefault(node, []).append(layer)

    def nodes(self, layer: Layer) -> list[onnx_ir.Node]:
        return [self.by_name[name] for name in layer.nodes if name in self.by_name]

    def layers(self, node: onnx_ir.Node) -> list[Layer]:
        return self._layers.get(node, [])


def _attention(block: Block, join: _Join, batches: Batches) -> AttentionKernels:
    scores, q = batches.per_image(block.product.outputs[0]), batches.shape(block.product.inputs[0])
    maps = None
    if scores is not None and len(scores) > 2:
        maps = 1
        for size in scores[:-2]:
            maps *= size
    state, fused_in = _state(block, join)
    held = [layer.name for layer in join.listed if any(node in block.nodes for node in join.nodes(layer))]
    return AttentionKernels(
        name=block.name,
        nodes=tuple(node_name(node) for node in block.nodes),
        maps=maps,
        tokens=scores[-2] if scores is not None and len(scores) > 1 else None,
        depth=q[-1] if q else None,
        state=state,
        fused_in=fused_in,
        kernels=tuple(held),
    )


def _state(block: Block, join: _Join) -> tuple[State, str]:
    """And the kernel's name. Fused is one layer with all three, and no product's layer beside it.

    Kernels that pad what a fused one reads, or cut what it writes, are named after all that it does, and after what
    they do besides; a kernel that pads what a product reads is named after that product.
    """
    core = (block.product, block.softmax, block.context)
    held = [join.layers(node) for node in core]
    if not all(held):
        return "unknown", ""
    whole = [layer for layer in held[1] if not _moves(layer) and all(layer in layers for layers in held)]
    if any(_is_opaque(layer, join) for layer in whole):
        return "unknown", ""
    if not whole or any(_is_product(layer) and layer not in whole for layers in held for layer in layers):
        return "not fused", ""
    return "fused", min(whole, key=lambda layer: len(layer.nodes)).name


def _is_opaque(layer: Layer, join: _Join) -> bool:
    """Whether it stands for a whole piece of the graph: older versions of full TensorRT tell no more of those."""
    softmaxes = [node for node in join.nodes(layer) if node.op_type == "Softmax"]
    return len(softmaxes) > 1 or layer.name.startswith("{ForeignNode[")


def _placement(nodes: Iterable[onnx_ir.Node], join: _Join) -> Placement:
    held = [join.layers(node) for node in nodes]
    in_product = [layers for layers in held if layers and all(_is_product(layer) for layer in layers)]
    apart = [layers for layers in held if layers and layers not in in_product]
    return Placement(
        nodes=len(held),
        in_product=len(in_product),
        apart=len(apart),
        unknown=len(held) - len(in_product) - len(apart),
        kernels=len({layer.name for layers in apart for layer in layers if not _is_product(layer)}),
    )


def _is_product(layer: Layer) -> bool:
    return any(word in layer.kind.lower() for word in PRODUCT_KINDS)


def _moves(layer: Layer) -> bool:
    """Sizes of a dynamic batch are reshaped and cast as well, as single int64 numbers: those are no data."""
    if layer.outputs and all(one.dtype == "int64" for one in layer.outputs):
        return False
    is_moving_kind = any(word in layer.kind.lower() for word in MOVING_KINDS)
    return is_moving_kind or MOVING_CODE.fullmatch(layer.name) is not None
