"""Windowed attention with its windows as more heads: [B * nW, h, S, D] becomes [B, nW * h, S, D].

Relative position bias and shift mask then add up to one constant [1, nW * h, S, S] that broadcasts over the batch
alone, with no five-dimensional reshape between the two products: the form that TensorRT has fused attention kernels
for. Whatever order the windows are in, regrouping them is exact, because the constant repeats with each image.

The scale, 1/sqrt(D) in Swin, moves into the weights that make q. SwinV2's cosine attention normalises q in between,
so that its scale (one number a head) multiplies q instead, which is S/D times cheaper than to multiply the scores.

(B batch, nW windows an image, h heads, S tokens a window, D channels a head.)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from trtship.passes.attention import Attention, attention_at, score_chain
from trtship.passes.batches import Batches
from trtship.passes.columns import bias_slot, linear_behind, used_elsewhere
from trtship.passes.known import Known
from trtship.passes.rewrite import Editor, Rewrite, only_user

if TYPE_CHECKING:
    import onnx_ir


@dataclass(frozen=True)
class Constant:
    """`array` in place of the input `slot` of `node`."""

    node: onnx_ir.Node
    slot: int
    array: Any


@dataclass(frozen=True)
class Found:
    """`layer` is the new weight and biases of the layer that makes q; empty where the scale cannot go there.

    `leading` and `back` are the first dimensions of the reshapes to [B, nW * h, S, D], and back to [B * nW, h, S, D].
    """

    attention: Attention
    leading: int
    back: int
    layer: tuple[Constant, ...]


class WindowsIntoHeads(Rewrite[Found]):
    """See the module. An attention without a constant added to its scores is none of its business."""

    name: ClassVar[str] = "windows into heads"
    order: ClassVar[int | None] = 10

    def pattern(self, graph: onnx_ir.Graph) -> Iterable[onnx_ir.Node]:
        return (node for node in graph if node.op_type == "Softmax" and score_chain(node) is not None)

    def check(self, anchor: onnx_ir.Node, batches: Batches) -> Found | None:
        chain = score_chain(anchor)
        assert chain is not None
        attention = attention_at(anchor, chain, batches)
        has_scale = bool((attention.scale != 1).any())
        if attention.plain and attention.windows == 1 and not has_scale:
            return None
        layer = _scaled_layer(attention, batches.known[0]) if has_scale else ()
        return Found(attention, batches.leading(1), batches.leading(attention.windows), layer)

    def rewrite(self, found: Found, editor: Editor) -> None:
        a = found.attention
        for new in found.layer:
            old = new.node.inputs[new.slot]
            new.node.replace_input_with(new.slot, editor.constant(new.array, f"{old.name if old else ''}/scaled"))
        q = a.q
        if not found.layer and (a.scale != 1).any():
            scale = editor.constant(a.scale.reshape(-1, 1, 1).astype(a.dtype), "scale")
            q = editor.node("Mul", [q, scale], before=a.product)
        product = _scores(found, q, editor)
        scores = editor.node("Add", [product, editor.constant(_bias_and_mask(a), "bias_and_mask")], before=a.softmax)
        weights = editor.node("Softmax", [scores], before=a.softmax, axis=-1)
        v = _regrouped(found, a.v, (a.tokens, a.depth), editor, before=a.context)
        context = editor.node("MatMul", [weights, v], before=a.context)
        if a.windows > 1:
            context = editor.reshape(context, (found.back, a.heads, a.tokens, a.depth), before=a.context)
        editor.replace(a.context.outputs[0], context)


def _scores(found: Found, q: onnx_ir.Value, editor: Editor) -> onnx_ir.Value:
    a = found.attention
    q = _regrouped(found, q, (a.tokens, a.depth), editor, before=a.product)
    if a.k_is_transposed:
        k = _regrouped(found, a.k, (a.depth, a.tokens), editor, before=a.product)
    else:
        k = _regrouped(found, a.k, (a.tokens, a.depth), editor, before=a.product)
        k = editor.node("Transpose", [k], before=a.product, perm=[0, 1, 3, 2])
    return editor.node("MatMul", [q, k], before=a.softmax)


def _regrouped(
    found: Found, value: onnx_ir.Value, last: tuple[int, int], editor: Editor, *, before: onnx_ir.Node
) -> onnx_ir.Value:
    """[B * nW, h, ...] as [B, nW * h, ...]."""
    a = found.attention
    if a.windows == 1:
        return value
    return editor.reshape(value, (found.leading, a.windows * a.heads, *last), before=before)


def _bias_and_mask(a: Attention) -> Any:
    """[1, nW * h, S, S]."""
    import numpy as np

    full = np.broadcast_to(a.added, (a.windows, a.heads, a.tokens, a.tokens))
    return full.reshape(1, a.windows * a.heads, a.tokens, a.tokens).astype(a.dtype)


def _scaled_layer(attention: Attention, known: Known) -> tuple[Constant, ...]:
    """Weight and biases that give `scale * q`, if q is columns of a linear layer that nothing else uses."""
    import numpy as np

    linear = linear_behind(attention.q, known)
    if linear is None or only_user(attention.q) is None or used_elsewhere(linear, attention.q, known):
        return ()
    weight = known.data(linear.product.inputs[1])
    assert weight is not None
    columns, wanted = linear.columns[attention.q], attention.scale.reshape(1, -1, 1, 1)
    scale = np.ones(weight.shape[1])
    scale[columns] = np.broadcast_to(wanted, columns.shape)
    if (scale[columns] != wanted).any():
        return ()
    layer = [Constant(linear.product, 1, (weight * scale).astype(weight.dtype))]
    for add in linear.biases:
        slot = bias_slot(add, known)
        assert slot is not None
        bias = known.data(add.inputs[slot])
        assert bias is not None
        of_position = linear.columns[add.outputs[0]].reshape(-1, len(bias))
        if (of_position != of_position[:1]).any():
            return ()
        layer.append(Constant(add, slot, (bias * scale[of_position[0]]).astype(bias.dtype)))
    return tuple(layer)
