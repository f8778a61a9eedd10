"""Why is this plan slower than one in a safer precision? What the layers of the two, joined with their graphs, tell.

Each line is an observation of both plans, never a guess; the list is empty where their layers are not known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from trtship.engine.kernels import PRODUCT_KINDS, KernelReport, kernels_of, node_name
from trtship.engine.layer_text import Layer
from trtship.engine.layers import PlanLayers
from trtship.graphs import load_graph

if TYPE_CHECKING:
    import onnx_ir

QDQ = ("QuantizeLinear", "DequantizeLinear")
PRODUCTS = ("MatMul", "Gemm", "Conv")
SIZES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1, "uint8": 1, "FP8": 1, "bool": 1, "int32": 4, "int64": 8}
NARROW = ("int8", "uint8", "FP8")
"""As layers call what was quantized: FP8 is TensorRT's own word."""
SHOWN = 3


class Side:
    """One of the two plans: its candidate's `name`, the strongly typed graph that it was built from, its layers (those
    of one `profile`), and the milliseconds of each layer where they were profiled, by the layer's name."""

    def __init__(
        self,
        name: str,
        graph: Path,
        layers: PlanLayers,
        *,
        profile: int = 0,
        milliseconds: Mapping[str, float] | None = None,
    ) -> None:
        self.name, self.milliseconds = name, dict(milliseconds or {})
        self.layers = tuple(layer for layer in layers.layers if layer.profile == profile)
        self.report: KernelReport = kernels_of(graph, layers, profile=profile)
        self._model = load_graph(graph)

    @cached_property
    def nodes(self) -> dict[str, onnx_ir.Node]:
        return {node_name(node): node for node in self._model.graph}

    @property
    def written(self) -> float:
        """MiB that the layers write; a size that is open counts as 1."""
        tensors = [tensor for layer in self.layers for tensor in layer.outputs]
        return sum(math.prod(max(n, 1) for n in t.shape) * SIZES.get(t.dtype, 4) for t in tensors) / 2**20

    @property
    def only_quantizing(self) -> list[Layer]:
        """Layers that bear the names of Q, DQ and the products beside them, and multiply no matrices."""
        return [layer for layer in self.layers if self._holds(layer, QDQ) and self._is_bare(layer)]

    @property
    def wide_products(self) -> list[Layer]:
        """Products that read what was quantized in the graph, and not in 8 bits."""
        quantized = [name for name, node in self.nodes.items() if node.op_type in PRODUCTS and _is_quantized(node)]
        wide = [
            layer for layer in self.layers if _is_product(layer) and not any(t.dtype in NARROW for t in layer.inputs)
        ]
        return [layer for layer in wide if any(name in quantized for name in layer.nodes)]

    @property
    def full_layers(self) -> list[Layer]:
        """Layers with a result in fp32, the graph's own outputs apart."""
        outputs = {value.name for value in self._model.graph.outputs}
        return [
            layer for layer in self.layers if any(t.dtype == "float32" and t.name not in outputs for t in layer.outputs)
        ]

    def _holds(self, layer: Layer, operators: Sequence[str]) -> bool:
        return any(self.nodes[name].op_type in operators for name in layer.nodes if name in self.nodes)

    def _is_bare(self, layer: Layer) -> bool:
        known = [self.nodes[name].op_type for name in layer.nodes if name in self.nodes]
        return bool(known) and all(op in (*QDQ, *PRODUCTS) for op in known) and not _is_product(layer)


def why_slower(slow: Side, safe: Side) -> tuple[str, ...]:
    """What the slower plan does more of, one line each; empty where neither list of layers says anything."""
    if not slow.layers or not safe.layers:
        return ()
    found: list[str] = []

    def compare(what: str, ours: Sequence[Layer], theirs: Sequence[Layer]) -> None:
        if len(ours) > len(theirs):
            found.append(f"{what}: {len(ours)}, {len(theirs)} in {safe.name}; {_names(ours, slow)}")

    compare("kernels that only quantize or rescale (unfused Q/DQ)", slow.only_quantizing, safe.only_quantizing)
    compare("quantized products that are not multiplied in 8 bits", slow.wide_products, safe.wide_products)
    compare("layers with results in fp32", slow.full_layers, safe.full_layers)
    compare("layers that only move or convert data (reformats, casts, copies)", _moving(slow), _moving(safe))
    found += _attention(slow, safe)
    for what, ours, theirs in (
        ("GELUs", slow.report.gelu, safe.report.gelu),
        ("LayerNorms", slow.report.layer_norm, safe.report.layer_norm),
    ):
        if ours.kernels > theirs.kernels:
            found.append(f"kernels that {what} have to themselves: {ours.kernels}, {theirs.kernels} in {safe.name}")
    if len(slow.layers) > len(safe.layers):
        found.append(f"layers: {len(slow.layers)}, {len(safe.layers)} in {safe.name}")
    if slow.written > 1.02 * safe.written:
        found.append(f"MiB that its layers write: {slow.written:.3g}, {safe.written:.3g} in {safe.name}")
    return (*found, *_times(slow, safe)) or (
        f"it has no more layers, reformats or unfused Q/DQ than {safe.name}: what differs is inside its kernels",
    )


def _moving(side: Side) -> list[Layer]:
    return [layer for layer in side.layers if layer.name in set(side.report.moving)]


def _attention(slow: Side, safe: Side) -> list[str]:
    ours, theirs = ([b for b in side.report.attention if b.state == "fused"] for side in (slow, safe))
    if len(ours) >= len(theirs):
        return []
    lost = [b.name for b in slow.report.attention if b.state != "fused"]
    return [f"attention blocks in one kernel: {len(ours)}, {len(theirs)} in {safe.name}; not {lost[0]}"]


def _times(slow: Side, safe: Side) -> list[str]:
    """The kinds of layers on which it spends more time, where both were profiled."""
    if not slow.milliseconds or not safe.milliseconds:
        return []
    ours, theirs = (_by_kind(side) for side in (slow, safe))
    more = {kind: ms - theirs.get(kind, 0.0) for kind, ms in ours.items() if ms > theirs.get(kind, 0.0)}
    return [
        f"{ours[kind]:.3g} ms in layers of kind {kind or 'unknown'}, {theirs.get(kind, 0.0):.3g} in {safe.name}"
        for kind in sorted(more, key=lambda kind: -more[kind])[:SHOWN]
    ]


def _by_kind(side: Side) -> dict[str, float]:
    found: dict[str, float] = {}
    for layer in side.layers:
        found[layer.kind] = found.get(layer.kind, 0.0) + side.milliseconds.get(layer.name, 0.0)
    return found


def _names(layers: Sequence[Layer], side: Side) -> str:
    """By the ONNX nodes that they came from: a product's, where they hold one."""
    names = []
    for layer in layers:
        known = [name for name in layer.nodes if name in side.nodes]
        names.append(next((n for n in known if side.nodes[n].op_type in PRODUCTS), known[0] if known else layer.name))
    shown = list(dict.fromkeys(names))
    return ", ".join(shown[:SHOWN]) + (f" and {len(shown) - SHOWN} more" if len(shown) > SHOWN else "")


def _is_product(layer: Layer) -> bool:
    return any(word in layer.kind.lower() for word in PRODUCT_KINDS)


def _is_quantized(node: onnx_ir.Node) -> bool:
    """Whether what it multiplies with its weights comes out of a DequantizeLinear."""
    maker = None if node.inputs[0] is None else node.inputs[0].producer()
    return maker is not None and maker.op_type == "DequantizeLinear"
