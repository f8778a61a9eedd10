"""The convolution that cuts a picture into patches, as what it is: a reshape, a transposition and a matrix product.

A kernel as large as its stride, without padding, reads each pixel once. TensorRT pads a picture's 3 channels and runs a
convolution all the same; as a product with K = 3 * patch^2 far less is moved.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from trtship.passes.batches import Batches
from trtship.passes.rewrite import Editor, Miss, Rewrite, only_user

if TYPE_CHECKING:
    import onnx_ir

TO_CHANNELS_LAST, TO_CHANNELS_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)


@dataclass(frozen=True)
class Found:
    """`weight` [C * p * q, E] and `bias` [E] of a `conv` with kernel [p, q] and a result [B, E, rows, columns].

    `leading` is the first dimension of reshapes. `tokens` are the values that hold the result as
    [B, rows * columns, E], `pictures` those that hold it as [B, rows, columns, E].
    """

    conv: onnx_ir.Node
    channels: int
    kernel: tuple[int, int]
    rows: int
    columns: int
    weight: Any
    bias: Any | None
    leading: int
    tokens: tuple[onnx_ir.Value, ...]
    pictures: tuple[onnx_ir.Value, ...]


class PatchEmbedding(Rewrite[Found]):
    """Convolutions of the graph's inputs alone: inside a network, channels are many and a convolution is as quick."""

    name: ClassVar[str] = "patch embedding"
    order: ClassVar[int | None] = 20

    def pattern(self, graph: onnx_ir.Graph) -> Iterable[onnx_ir.Node]:
        for node in graph:
            if node.op_type == "Conv" and node.inputs[0] is not None and node.inputs[0].is_graph_input():
                stride = node.attributes.get_ints("strides", ())
                kernel = node.attributes.get_ints("kernel_shape", stride)
                if len(stride) == 2 and max(stride) > 1 and tuple(kernel) == tuple(stride):
                    yield node

    def check(self, anchor: onnx_ir.Node, batches: Batches) -> Found | None:
        attributes = anchor.attributes
        if attributes.get_int("group", 1) != 1:
            raise Miss(anchor, "it has groups")
        automatic = attributes.get_string("auto_pad", "NOTSET")
        if any(attributes.get_ints("pads", ())) or automatic not in ("NOTSET", "VALID"):
            raise Miss(anchor, "it pads the picture")
        if any(dilation != 1 for dilation in attributes.get_ints("dilations", ())):
            raise Miss(anchor, "it is dilated")
        known = batches.known[0]
        weight = known.data(anchor.inputs[1])
        bias = known.data(anchor.inputs[2]) if len(anchor.inputs) > 2 else None
        if weight is None or (len(anchor.inputs) > 2 and anchor.inputs[2] is not None and bias is None):
            raise Miss(anchor, "its weight is not constant")
        before, after = batches.per_image(anchor.inputs[0]), batches.per_image(anchor.outputs[0])
        if before is None or after is None or before[0] != 1:
            raise Miss(anchor, "the picture's size is not known")
        kernel = weight.shape[2:]
        if (before[2] % kernel[0], before[3] % kernel[1]) != (0, 0):
            size, patch = f"{before[2]} x {before[3]}", f"{kernel[0]} x {kernel[1]}"
            raise Miss(anchor, f"a picture of {size} is not made of patches of {patch}")
        tokens, pictures = _readers(anchor, after, batches)
        return Found(
            conv=anchor,
            channels=before[1],
            kernel=kernel,
            rows=after[2],
            columns=after[3],
            weight=weight.reshape(weight.shape[0], -1).T.copy(),
            bias=bias,
            leading=batches.leading(1),
            tokens=tokens,
            pictures=pictures,
        )

    def rewrite(self, found: Found, editor: Editor) -> None:
        conv, grid = found.conv, (found.rows, found.columns)
        source, (terms, embedding) = conv.inputs[0], found.weight.shape
        assert source is not None
        split = (found.leading, found.channels, found.rows, found.kernel[0], found.columns, found.kernel[1])
        patches = editor.reshape(source, split, before=conv)
        patches = editor.node("Transpose", [patches], before=conv, perm=[0, 2, 4, 1, 3, 5])
        patches = editor.reshape(patches, (found.leading, found.rows * found.columns, terms), before=conv)
        tokens = editor.node("MatMul", [patches, editor.constant(found.weight, "patch_weight")], before=conv)
        if found.bias is not None:
            tokens = editor.node("Add", [tokens, editor.constant(found.bias, "patch_bias")], before=conv)
        for value in found.tokens:
            editor.replace(value, tokens)
        picture = editor.reshape(tokens, (found.leading, *grid, embedding), before=conv)
        for value in found.pictures:
            editor.replace(value, picture)
        editor.replace(conv.outputs[0], editor.node("Transpose", [picture], before=conv, perm=TO_CHANNELS_FIRST))


def _readers(
    conv: onnx_ir.Node, shape: tuple[int, ...], batches: Batches
) -> tuple[tuple[onnx_ir.Value, ...], tuple[onnx_ir.Value, ...]]:
    """Values downstream that hold the result as [B, rows * columns, E], and as [B, rows, columns, E]."""
    tokens, pictures = [], []
    for user in conv.outputs[0].consumers():
        output = user.outputs[0]
        if output.is_graph_output():
            continue
        if user.op_type == "Transpose" and tuple(user.attributes.get_ints("perm", ())) == TO_CHANNELS_LAST:
            pictures.append(output)
        if user.op_type == "Reshape" and batches.per_image(output) == (1, shape[1], shape[2] * shape[3]):
            turn = only_user(output)
            is_turned = turn is not None and turn.op_type == "Transpose"
            if turn is not None and is_turned and tuple(turn.attributes.get_ints("perm", ())) == (0, 2, 1):
                tokens += [] if turn.outputs[0].is_graph_output() else [turn.outputs[0]]
    return tuple(tokens), tuple(pictures)
