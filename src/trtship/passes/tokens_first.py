"""Windowed attention between maps whose first dimension is a window's token: [S, X, C] in place of [X, S, C].

A fused attention kernel wants its windows and heads as one dimension with one stride. In [X, S, h * D] they have none:
a step of a head is D, a step of a window S * h * D. In [S, X, h * D] they do: (x, h) lies at (x * h_count + h) * D.
TensorRT therefore turns the map around ahead of the layer that makes q, k and v, in a kernel of its own, and back
behind the attention. Written like this in the graph, the turning joins the movement into window order, or goes away.

(X batch times windows, S tokens a window, h heads, D channels a head, C = h * D.)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from trtship.passes.batches import Batches
from trtship.passes.columns import MOVEMENTS, bias_slot, linear_behind
from trtship.passes.movements import users
from trtship.passes.rewrite import Editor, Miss, Rewrite, only_user

if TYPE_CHECKING:
    import onnx_ir

TURNED = (1, 0, 2)


@dataclass(frozen=True)
class Layer:
    """What makes q, k or v: `source` [X, S, K], `weight` [K, h * D], `bias` [h * D], columns in the order of heads;
    `value` holds its elements as [..., S, D], or as [..., D, S] where `turned`; of `shape`."""

    value: onnx_ir.Value
    source: onnx_ir.Value
    weight: Any
    bias: Any | None
    turned: bool
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Norm:
    """The LayerNormalization `node` ahead of the layers, `way` the movements in between, in order; and what is to
    become of its result: normalised, plus the number `shift`."""

    node: onnx_ir.Node
    way: tuple[onnx_ir.Node, ...]
    shift: float
    channels: int
    dtype: Any


@dataclass(frozen=True)
class Found:
    """`layers` make q, k and v, behind `norm` where their biases went into their weights. `context` is the product with
    v; `projection` reads it as [X, S, h * D], and `bias` is the sum behind that. `all_windows` and `images` are first
    dimensions of reshapes."""

    layers: tuple[Layer, ...]
    norm: Norm | None
    context: onnx_ir.Node
    projection: onnx_ir.Node
    bias: onnx_ir.Node | None
    windows: int
    heads: int
    tokens: int
    depth: int
    all_windows: int
    images: int


class TokensFirst(Rewrite[Found]):
    """See the module. For attentions whose maps `window order` has turned around already."""

    name: ClassVar[str] = "tokens first"
    order: ClassVar[int | None] = 40

    def pattern(self, graph: onnx_ir.Graph) -> Iterable[onnx_ir.Node]:
        if not any(_is_turned(value) for node in graph for value in node.outputs):
            return
        for node in graph:
            context = only_user(node.outputs[0]) if node.op_type == "Softmax" else None
            is_product = context is not None and context.op_type == "MatMul" and context.inputs[0] is node.outputs[0]
            if is_product and _product(node) is not None:
                yield node

    def check(self, anchor: onnx_ir.Node, batches: Batches) -> Found | None:
        product, context = _product(anchor), only_user(anchor.outputs[0])
        assert product is not None
        assert context is not None
        shape = batches.per_image(context.outputs[0])
        if shape is None or len(shape) != 4 or shape[0] != 1:
            raise Miss(anchor, f"its windows are not among the heads: [{shape}]")
        _, groups, tokens, depth = shape
        layers = tuple(
            _layer(value, (groups, tokens, depth), turned, batches)
            for value, turned in ((product.inputs[0], False), (product.inputs[1], True), (context.inputs[1], False))
        )
        if not all(_is_turned(layer.source) for layer in layers):
            return None  # not in window order: turning the map around would cost what it gains
        layers, norm = _without_biases(layers, batches)
        heads = layers[0].weight.shape[1] // depth
        windows = groups // heads
        projection, bias = _projection(context, windows, heads, batches)
        return Found(
            layers=layers,
            norm=norm,
            context=context,
            projection=projection,
            bias=bias,
            windows=windows,
            heads=heads,
            tokens=tokens,
            depth=depth,
            all_windows=batches.leading(windows),
            images=batches.leading(1),
        )

    def rewrite(self, found: Found, editor: Editor) -> None:
        for value, layer in zip(_qkv(found, editor), found.layers, strict=True):
            before = _maker(layer.value)
            value = editor.node("Transpose", [value], before=before, perm=(1, 2, 0) if layer.turned else TURNED)
            editor.replace(layer.value, editor.reshape(value, layer.shape, before=before))
        last = found.projection
        end = last if found.bias is None else found.bias
        value = editor.reshape(found.context.outputs[0], (-1, found.tokens, found.depth), before=last)
        value = editor.node("Transpose", [value], before=last, perm=TURNED)
        value = editor.reshape(value, (found.tokens, found.all_windows, found.heads * found.depth), before=last)
        weight = last.inputs[1]
        assert weight is not None
        value = editor.node("MatMul", [value, weight], before=end)
        if found.bias is not None:
            other = [one for one in found.bias.inputs if one is not last.outputs[0]]
            value = editor.node("Add", [value, *other], before=end)
        old = end.outputs[0]
        for user in list(old.consumers()):
            if _is_turned(user.outputs[0]):
                editor.replace(user.outputs[0], value)
        editor.replace(old, editor.node("Transpose", [value], before=end, perm=TURNED))


def _qkv(found: Found, editor: Editor) -> list[onnx_ir.Value]:
    """q, k and v as [S, X * h, D]."""
    sources, made = {}, []
    for layer in found.layers:
        before = _maker(layer.value)
        if layer.source not in sources:
            value = layer.source if found.norm is None else _normalised(found.norm, editor, before=before)
            sources[layer.source] = editor.turned(value, before=before)
        value = editor.node("MatMul", [sources[layer.source], editor.constant(layer.weight, "weight")], before=before)
        if layer.bias is not None:
            value = editor.node("Add", [value, editor.constant(layer.bias, "bias")], before=before)
        made.append(editor.reshape(value, (found.tokens, -1, found.depth), before=before))
    return made


def _normalised(norm: Norm, editor: Editor, *, before: onnx_ir.Node) -> onnx_ir.Value:
    """The norm's result with the scale 1 and the bias `norm.shift`, moved as the old one was."""
    import numpy as np

    old = norm.node
    scale = np.ones(norm.channels, norm.dtype)
    inputs = [old.inputs[0], editor.constant(scale, "scale"), editor.constant(scale * norm.shift, "shift")]
    attributes = {name: one.value for name, one in old.attributes.items()}
    value = editor.node("LayerNormalization", inputs, before=norm.way[0] if norm.way else before, **attributes)
    return editor.moved(norm.way, old.outputs[0], value, before=before) if norm.way else value


def _is_turned(value: onnx_ir.Value) -> bool:
    node = value.producer()
    return node is not None and node.op_type == "Transpose" and tuple(node.attributes.get_ints("perm", ())) == TURNED


def _maker(value: onnx_ir.Value) -> onnx_ir.Node:
    """The node that makes a value: what is to replace it goes ahead of that."""
    node = value.producer()
    assert node is not None
    return node


def _product(softmax: onnx_ir.Node) -> onnx_ir.Node | None:
    """The product of q and k ahead of a softmax, with at most one Add in between."""
    node = softmax.inputs[0].producer() if softmax.inputs[0] is not None else None
    if node is not None and node.op_type == "Add":
        makers = [value.producer() for value in node.inputs if value is not None]
        node = next((maker for maker in makers if maker is not None and maker.op_type == "MatMul"), None)
    return node if node is not None and node.op_type == "MatMul" else None


def _layer(value: onnx_ir.Value | None, sizes: tuple[int, int, int], turned: bool, batches: Batches) -> Layer:
    import numpy as np

    assert value is not None
    groups, tokens, depth = sizes
    known, node = batches.known[0], value.producer()
    linear = linear_behind(value, known)
    if linear is None or node is None:  # SwinV2's q and k, say: the kernels that normalise them copy them anyway
        raise Miss(node or value.consumers()[0], "it is not made by a linear layer")
    source = linear.product.inputs[0]
    weight, shape = known.data(linear.product.inputs[1]), batches.per_image(value)
    made = known.shape(linear.product.outputs[0])
    assert source is not None
    assert weight is not None
    if made is None or len(made) != 3 or made[1] != tokens or groups * batches.sizes[0] % made[0]:
        raise Miss(linear.product, f"it is not over [windows, {tokens}, channels], but {made}")
    wanted_end = (depth, tokens) if turned else (tokens, depth)
    if shape is None or len(shape) != 4 or shape[2:] != wanted_end or shape[0] * shape[1] != groups:
        raise Miss(node, f"its result is not [..., {wanted_end[0]}, {wanted_end[1]}], but {shape}")
    heads = groups * batches.sizes[0] // made[0]
    columns, rows = linear.columns[value], _rows(value, linear.product, known)
    if rows is None or columns.shape != rows.shape:
        raise Miss(node, "the way from its linear layer is not known")
    if turned:
        columns, rows = np.swapaxes(columns, -1, -2), np.swapaxes(rows, -1, -2)
    columns, rows = (one.reshape(made[0], heads, tokens, depth) for one in (columns, rows))
    wanted = np.arange(made[0] * tokens).reshape(made[0], 1, tokens, 1)
    if not (rows == wanted).all() or not (columns == columns[:1, :, :1]).all():
        raise Miss(node, "its windows or tokens have changed places since its linear layer")
    picked = columns[0, :, 0].reshape(-1)
    bias = None
    for add in linear.biases:
        slot = bias_slot(add, known)
        assert slot is not None
        constant = known.data(add.inputs[slot])
        assert constant is not None
        places = linear.columns[add.outputs[0]].reshape(-1, len(constant))
        whole = np.zeros(weight.shape[1], constant.dtype)
        if not (places == places[:1]).all():
            raise Miss(add, "it adds another bias to each token")
        whole[places[0]] = constant
        bias = whole[picked] if bias is None else bias + whole[picked]
    target = (batches.leading(shape[0]), *shape[1:])
    return Layer(value, source, np.ascontiguousarray(weight[:, picked]), bias, turned, target)


def _without_biases(layers: tuple[Layer, ...], batches: Batches) -> tuple[tuple[Layer, ...], Norm | None]:
    """The same layers with their biases in their weights, and the norm that this needs; as they are where it cannot be.

    TensorRT makes q, k and v in one batched product, and adds each bias in a kernel of its own. A normalised row n has
    the sum 0, so for y = n + s (s a number, C channels) the sum of y is C * s, a constant that the weights can turn
    into any bias: with the norm's scale g and bias c,

        (g * n + c) W + b  =  y M,   M = W' - mean(W') + b' / (C * s),   W' = diag(g) W,   b' = c W + b

    the mean over each column of W'. `s` balances the two roundings that this adds, of b' / (C * s) in each weight and
    of s times the weights' sum: s^2 = |b'| / (C |W'|), in root mean squares, and then a power of two.
    """
    import numpy as np

    if all(layer.bias is None for layer in layers) or len({layer.source for layer in layers}) != 1:
        return layers, None
    way: list[onnx_ir.Node] = []
    node = layers[0].source.producer()
    while node is not None and node.op_type in ("Reshape", "Transpose"):
        way.insert(0, node)
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    known = batches.known[0]
    if node is None or node.op_type != "LayerNormalization":
        return layers, None
    rank = len(known.shape(node.outputs[0]) or ())
    numbers = [known.data(value) if value is not None else np.zeros(1) for value in (*node.inputs[1:], None)[:2]]
    if node.attributes.get_int("axis", -1) not in (-1, rank - 1) or any(one is None for one in numbers):
        return layers, None
    scale, shift = (np.asarray(one, np.float64).reshape(-1) for one in numbers)
    weights = [scale[:, None] * layer.weight.astype(np.float64) for layer in layers]
    biases = [
        (0 if layer.bias is None else layer.bias.astype(np.float64)) + shift @ layer.weight.astype(np.float64)
        for layer in layers
    ]
    channels = len(weights[0])
    sizes = np.sqrt([np.mean(np.square(biases)), np.mean(np.square(weights))])
    if not sizes.all():
        return layers, None
    added = float(2.0 ** np.round(np.log2(sizes[0] / (channels * sizes[1])) / 2))
    made = tuple(
        Layer(
            layer.value,
            layer.source,
            (weight - weight.mean(axis=0) + bias / (channels * added)).astype(layer.weight.dtype),
            None,
            layer.turned,
            layer.shape,
        )
        for layer, weight, bias in zip(layers, weights, biases, strict=True)
    )
    return made, Norm(node, tuple(way), added, channels, layers[0].weight.dtype)


def _rows(value: onnx_ir.Value, product: onnx_ir.Node, known: Any) -> Any | None:
    """For each element of `value`, its row in the product, numbered through."""
    import numpy as np

    way: list[onnx_ir.Node] = []
    node = value.producer()
    while node is not None and node is not product:
        way.append(node)
        slot = 0
        if node.op_type == "Add":
            found = bias_slot(node, known)
            slot = 1 - found if found is not None else 0
        source = node.inputs[slot]
        node = source.producer() if source is not None else None
    shape = known.shape(product.outputs[0])
    if shape is None:
        return None
    count = int(np.prod(shape[:-1]))
    rows = np.broadcast_to(np.arange(count, dtype=np.int32).reshape(*shape[:-1], 1), shape)
    for step in reversed(way):
        if step.op_type != "Add":
            moved = known.moved(step, rows)
            if not moved:
                return None
            rows = moved[step.outputs[0]] if len(moved) == 1 else moved[_towards(step, way)]
    return rows


def _towards(step: onnx_ir.Node, way: list[onnx_ir.Node]) -> onnx_ir.Value:
    """The output of a Split that the next step reads."""
    following = way[way.index(step) - 1]
    value = following.inputs[0]
    assert value is not None
    return value


def _reader(value: onnx_ir.Value) -> onnx_ir.Node | None:
    """The one node that uses the elements of `value`."""
    found = users(value)
    return found[0] if len(found) == 1 and not value.is_graph_output() else None


def _projection(
    context: onnx_ir.Node, windows: int, heads: int, batches: Batches
) -> tuple[onnx_ir.Node, onnx_ir.Node | None]:
    import numpy as np

    known = batches.known[0]
    value = context.outputs[0]
    shape = known.shape(value)
    assert shape is not None
    numbers = np.arange(np.prod(shape), dtype=np.int64).reshape(shape)
    while (user := _reader(value)) is not None and user.op_type in MOVEMENTS:
        moved = known.moved(user, numbers)
        if len(moved) != 1:
            raise Miss(user, "what it does to the context is not known")
        value, numbers = user.outputs[0], moved[user.outputs[0]]
    weight = known.data(user.inputs[1]) if user is not None and user.op_type == "MatMul" else None
    if user is None or weight is None or weight.ndim != 2 or user.inputs[0] is not value:
        raise Miss(context, "no linear layer reads its result")
    images, _, tokens, depth = shape
    by_head = np.arange(numbers.size).reshape(images * windows, heads, tokens, depth)
    wanted = by_head.transpose(0, 2, 1, 3).reshape(images * windows, tokens, heads * depth)
    if numbers.shape != wanted.shape or not (numbers == wanted).all():
        raise Miss(user, "the context does not reach it as [windows, tokens, channels]")
    add = _reader(user.outputs[0])
    is_bias = add is not None and add.op_type == "Add" and bias_slot(add, known) is not None
    return user, add if is_bias else None
