"""Keep a Swin block's tokens in the order of its windows, from its residual fork to its end.

Rolling a map and cutting it into windows changes the places of tokens and nothing else, and LayerNorm, the MLP and the
residual sums treat each token by itself. So a block may change the order once, before its first LayerNorm, and go back
at its end, where the going back and the next block's going there are one movement:

    x -> norm -> roll, cut -> attention -> join, roll back -> + x -> norm -> mlp -> +
    x -> roll, cut -> (norm -> attention -> + -> norm -> mlp -> +) -> join, roll back

The places of the tokens in a window come first then, [S, B * nW, C]: see `tokens_first`. SwinV2 normalises behind its
attention, and is left alone: nothing was gained there.

Ahead of a LayerNorm a movement is part of the kernel that sums up and normalises. Behind one it is not: TensorRT writes
the centred map out in fp32, and moves and scales it in a second kernel.

A map keeps its shape, [B, H, W, C] or [B, H * W, C], also where its tokens are in another order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from trtship.passes.batches import Batches
from trtship.passes.movements import MOVES, Movement, moved_inputs, movement_to, positions, users
from trtship.passes.rewrite import Editor, Miss, Rewrite
from trtship.passes.tokenwise import Tokenwise

if TYPE_CHECKING:
    import onnx_ir

TURNED = (1, 0, 2)
Use = tuple["onnx_ir.Node", int]
"""A node and which of its inputs."""


@dataclass(frozen=True)
class Found:
    """`there` cuts into windows and `back` joins them. `enters` are the uses of the residual fork on the way to the
    windows, `skips` the one on the way to the residual sum. `end` is the last map in window order. The shapes are
    targets of reshapes: the fork's, `there`'s source's and target's, `back`'s target's and source's, the end's."""

    there: Movement
    back: Movement
    enters: tuple[Use, ...]
    skips: Use
    end: onnx_ir.Value
    fork_shape: tuple[int, ...]
    source_shape: tuple[int, ...]
    windows_shape: tuple[int, ...]
    joined_shape: tuple[int, ...]
    back_shape: tuple[int, ...]
    end_shape: tuple[int, ...]


class WindowOrder(Rewrite[Found]):
    """See the module. Maps that are padded to whole windows are left alone: padding is no movement."""

    name: ClassVar[str] = "window order"
    order: ClassVar[int | None] = 30

    def pattern(self, graph: onnx_ir.Graph) -> Iterable[onnx_ir.Node]:
        seen = set()
        for node in graph:
            value = node.inputs[0] if node.op_type == "MatMul" else None
            producer = value.producer() if value is not None else None
            if producer is not None and producer.op_type in MOVES and value not in seen:
                seen.add(value)
                yield node

    def check(self, anchor: onnx_ir.Node, batches: Batches) -> Found | None:
        assert anchor.inputs[0] is not None
        there = movement_to(anchor.inputs[0], batches)
        if there is None:
            return None
        tokenwise = Tokenwise(batches, there.order.size)
        if not tokenwise.holds(there.source):
            return None
        try:
            fork, enters = _fork(there, tokenwise)
            skips, add, back = _residual(fork, enters, there, tokenwise)
            if fork is there.source:
                raise Miss(there.nodes[0], "no norm stands between the residual fork and the windows")
            if _asks_itself(there, fork):
                raise Miss(
                    there.nodes[0], "how it moves is worked out from the normalised map, not from the one before"
                )
        except Miss:
            if there.is_still:  # a reshape ahead of a linear layer, and no window
                return None
            raise
        end = tokenwise.last_cut(add.outputs[0])
        if end.is_graph_output():
            raise Miss(add, "its result is an output of the graph")

        def shape(value: onnx_ir.Value) -> tuple[int, ...]:
            found = batches.per_image(value)
            if found is None:
                raise Miss(anchor, f"the shape of {value.name} is not known")
            return (batches.leading(found[0]), *found[1:])

        return Found(
            there=there,
            back=back,
            enters=enters,
            skips=skips,
            end=end,
            fork_shape=shape(fork),
            source_shape=shape(there.source),
            windows_shape=shape(there.target),
            joined_shape=shape(back.target),
            back_shape=shape(back.source),
            end_shape=shape(end),
        )

    def rewrite(self, found: Found, editor: Editor) -> None:
        there, back = found.there, found.back
        first, slot = found.enters[0]
        fork = first.inputs[slot]  # another value than at the check, where the block before was rewritten
        assert fork is not None
        first = _first((first, found.skips[0]))
        value = editor.reshape(fork, found.source_shape, before=first)
        windows = editor.moved(there.nodes, there.source, value, before=first)
        windows = editor.node("Transpose", [windows], before=first, perm=TURNED)
        ordered = editor.reshape(windows, found.fork_shape, before=first)
        for node, index in (*found.enters, found.skips):
            node.replace_input_with(index, ordered)
        end = there.nodes[-1]
        turned = editor.reshape(there.source, _turned(found.windows_shape), before=end)
        editor.replace(there.target, editor.node("Transpose", [turned], before=end, perm=TURNED))
        end = back.nodes[-1]
        turned = editor.node("Transpose", [back.source], before=end, perm=TURNED)
        editor.replace(back.target, editor.reshape(turned, found.joined_shape, before=end))
        self._go_back(found, editor)

    def _go_back(self, found: Found, editor: Editor) -> None:
        uses, after = tuple(found.end.uses()), _first(found.end.consumers())
        value = editor.reshape(found.end, _turned(found.back_shape), before=after)
        value = editor.node("Transpose", [value], before=after, perm=TURNED)
        value = editor.moved(found.back.nodes, found.back.source, value, before=after)
        value = editor.reshape(value, found.end_shape, before=after)
        for use in uses:
            use.node.replace_input_with(use.idx, value)


def _turned(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[1], shape[0], shape[2])


def _first(nodes: Sequence[onnx_ir.Node]) -> onnx_ir.Node:
    """The one that stands first in the graph."""
    places = positions(nodes[0].outputs[0])
    return min(nodes, key=places.__getitem__)


def _asks_itself(there: Movement, fork: onnx_ir.Value) -> bool:
    """Whether the targets of the movement's reshapes come from values behind the fork: a copy of it ahead of the norm
    would then need what the norm makes."""
    given = [v for node in there.nodes for v in node.inputs if v is not None and v not in moved_inputs(node)]
    seen: set[onnx_ir.Value] = set()
    while given:
        value = given.pop()
        producer = value.producer()
        if value is there.source or producer in there.nodes:
            return True
        if value not in seen and value is not fork and producer is not None:
            seen.add(value)
            given += [v for v in producer.inputs if v is not None]
    return False


def _fork(there: Movement, tokenwise: Tokenwise) -> tuple[onnx_ir.Value, tuple[Use, ...]]:
    """The map with other users, above: and how it is used on the way to the windows."""
    value, on_the_way = there.source, set(there.nodes)
    while set(users(value)) <= on_the_way:
        node = tokenwise.only_source(value)
        if node is None:
            raise Miss(there.nodes[0], "there is no residual around these windows")
        (value,) = tokenwise.sources(node) or (value,)
        on_the_way = {node}
    uses = tuple((u.node, u.idx) for u in value.uses() if u.node in on_the_way)
    return value, uses


def _residual(
    fork: onnx_ir.Value, enters: tuple[Use, ...], there: Movement, tokenwise: Tokenwise
) -> tuple[Use, onnx_ir.Node, Movement]:
    """How the fork goes to the sum, the sum, and the movement back on its other side."""
    import numpy as np

    ways = [(use.node, use.idx) for use in fork.uses() if (use.node, use.idx) not in enters]
    ways = [way for way in ways if way[0].op_type != "Shape"]
    for node, slot in ways:
        step, came = node, fork
        while step.op_type == "Reshape" and len(following := users(step.outputs[0])) == 1:
            step, came = following[0], step.outputs[0]
        sources = tokenwise.sources(step)
        if step.op_type != "Add" or sources is None or len(sources) != 2:
            continue
        for value in (one for one in sources if one is not came):
            back = _movement_behind(value, tokenwise)
            if back is not None and np.array_equal(there.order[back.order], np.arange(there.order.size)):
                return (node, slot), step, back
    raise Miss(there.nodes[0], "nothing adds these windows, put back in place, to the map that they were cut from")


def _movement_behind(value: onnx_ir.Value, tokenwise: Tokenwise) -> Movement | None:
    """The nearest movement above `value` that moves something, nothing but tokenwise nodes in between."""
    while True:
        found = movement_to(value, tokenwise.batches)
        if found is not None:
            return found
        node = tokenwise.only_source(value)
        if node is None or len(users(value)) != 1:
            return None
        (value,) = tokenwise.sources(node) or (value,)
