"""Tokens that only change places: the nodes between two values, and which token of the one stands where in the other.

A map of tokens is [B, ..., C], an image's tokens in all dimensions between the first and the last; or, cut into
windows, [B * nW, S, C]. A *movement* takes one to the other and leaves each token's channels alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trtship.passes.batches import Batches

if TYPE_CHECKING:
    import onnx_ir

MOVES = frozenset({"Reshape", "Transpose", "Slice", "Concat", "Squeeze", "Unsqueeze", "Gather", "Identity"})


@dataclass(frozen=True)
class Movement:
    """`nodes`, in the graph's order, lead from `source` to `target`. `order` [L]: the token of `source` that stands at
    each place of `target`; the same in every image."""

    source: onnx_ir.Value
    target: onnx_ir.Value
    nodes: tuple[onnx_ir.Node, ...]
    order: Any

    @property
    def is_still(self) -> bool:
        """Whether every token stays where it is."""
        import numpy as np

        return bool((self.order == np.arange(self.order.size)).all())


def movement_to(target: onnx_ir.Value, batches: Batches) -> Movement | None:
    """The longest movement that ends in `target`; None where there is none, or where it is no permutation of tokens.

    Nothing but `target` leaves it: where a value on the way is used elsewhere, the movement begins there.
    """
    stops: set[onnx_ir.Value] = set()
    while True:
        nodes, sources = _grow(target, stops)
        if len(sources) != 1 or not nodes:
            return None
        leaking = {v for node in nodes for v in node.outputs if v is not target and _leaks(v, nodes)}
        if not leaking:
            break
        stops |= leaking
    (source,) = sources
    ordered = tuple(sorted(nodes, key=positions(target).__getitem__))
    order = _order(source, target, ordered, batches)
    return None if order is None else Movement(source, target, ordered, order)


def users(value: onnx_ir.Value) -> list[onnx_ir.Node]:
    """The nodes that use a value's elements; those that ask for its shape alone do not."""
    return [use.node for use in value.uses() if use.node.op_type != "Shape"]


def positions(value: onnx_ir.Value) -> dict[onnx_ir.Node, int]:
    """Where each node of the graph stands that makes `value`."""
    producer = value.producer()
    assert producer is not None
    assert producer.graph is not None
    return {node: index for index, node in enumerate(producer.graph)}


def _grow(target: onnx_ir.Value, stops: set[onnx_ir.Value]) -> tuple[set[onnx_ir.Node], set[onnx_ir.Value]]:
    waiting, nodes, sources = [target], set[Any](), set[Any]()
    while waiting:
        value = waiting.pop()
        node = value.producer()
        if node is None or node.op_type not in MOVES or value in stops:
            sources.add(value)
        elif node not in nodes:
            nodes.add(node)
            waiting += moved_inputs(node)
    return nodes, sources


def _leaks(value: onnx_ir.Value, nodes: set[onnx_ir.Node]) -> bool:
    return value.is_graph_output() or any(user not in nodes for user in users(value))


def moved_inputs(node: onnx_ir.Node) -> list[onnx_ir.Value]:
    """The inputs whose elements a movement moves; not those that say where to."""
    every = node.inputs if node.op_type == "Concat" else node.inputs[:1]
    return [value for value in every if value is not None]


def _order(
    source: onnx_ir.Value, target: onnx_ir.Value, nodes: tuple[onnx_ir.Node, ...], batches: Batches
) -> Any | None:
    """Sends the tokens' numbers along the way, at every batch size; None unless it is one permutation in all images."""
    import numpy as np

    found = None
    for size, known in zip(batches.sizes, batches.known, strict=True):
        shape, ended = known.shape(source), known.shape(target)
        if not shape or not ended or shape[-1] != ended[-1] or shape[0] % size:
            return None
        numbers = np.arange(np.prod(shape), dtype=np.int64)
        arrays = {source: numbers.reshape(shape)}
        for node in nodes:
            rest = [arrays[v] if v in arrays else known.data(v) for v in node.inputs if v is not None]
            if any(one is None for one in rest):
                return None
            arrays.update(known.outputs(node, rest))
        if target not in arrays or arrays[target].size != numbers.size:
            return None
        moved = arrays[target].reshape(size, -1, shape[-1])
        tokens = moved[:, :, 0] // shape[-1] - np.arange(size)[:, None] * moved.shape[1]
        straight = (moved == moved[:, :, :1] + np.arange(shape[-1])).all()
        whole = (np.sort(tokens, axis=1) == np.arange(moved.shape[1])).all()
        if not straight or not whole or not (tokens == tokens[:1]).all():
            return None
        if found is not None and not np.array_equal(found, tokens[0]):
            return None
        found = tokens[0]
    return found
