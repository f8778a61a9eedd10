"""The core of an attention in a graph: softmax(a * q k^T + c) v, where a and c are constants, in whatever pieces.

Exporters and model authors write the scale before the product or after it, on one factor or on both, and the constants
in one Add or in several with reshapes in between. All of it is one product, one a and one c.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trtship.passes.batches import Batches
from trtship.passes.rewrite import Miss, only_user

if TYPE_CHECKING:
    import onnx_ir

SCORES = frozenset({"Add", "Mul", "Div", "Reshape"})


@dataclass(frozen=True)
class Attention:
    """`q`, `v` [X, h, S, D] and `k` the same, or [X, h, D, S] when `k_is_transposed`; X is batch times `windows`.

    `scale` [h] (or a single number, [1]) multiplies the products, `added` broadcasts to [windows, h, S, S]; both are
    float64, whatever the graph's `dtype`. `plain` says that nothing but one Add stood between product and softmax.
    """

    product: onnx_ir.Node
    softmax: onnx_ir.Node
    context: onnx_ir.Node
    q: onnx_ir.Value
    k: onnx_ir.Value
    v: onnx_ir.Value
    k_is_transposed: bool
    windows: int
    heads: int
    tokens: int
    depth: int
    scale: Any
    added: Any
    dtype: Any
    plain: bool


def score_chain(softmax: onnx_ir.Node) -> list[onnx_ir.Node] | None:
    """From the product to the node ahead of `softmax`, an Add among them; None where this is no attention."""
    chain: list[onnx_ir.Node] = []
    node = softmax.inputs[0].producer() if softmax.inputs[0] is not None else None
    while node is not None and node.op_type in SCORES:
        chain.append(node)
        node = data_input(node)
    has_add = any(step.op_type == "Add" for step in chain)
    users = softmax.outputs[0].consumers()
    is_attention = node is not None and node.op_type == "MatMul" and any(user.op_type == "MatMul" for user in users)
    return [node, *reversed(chain)] if has_add and is_attention and node is not None else None


def data_input(node: onnx_ir.Node) -> onnx_ir.Node | None:
    """Of an Add or Mul, the operand that leads to the product of q and k; None where neither does."""
    for value in node.inputs[: 1 if node.op_type in ("Reshape", "Div") else 2]:
        step = value.producer() if value is not None else None
        while step is not None and step.op_type in SCORES:
            step = data_input(step)
        if step is not None and step.op_type == "MatMul":
            return value.producer() if value is not None else None
    return None


def attention_at(softmax: onnx_ir.Node, chain: list[onnx_ir.Node], batches: Batches) -> Attention:
    """Raises Miss where the pieces do not add up to one product, one scale and one constant."""
    product, *steps = chain
    context = only_user(softmax.outputs[0])
    if context is None or context.op_type != "MatMul" or context.inputs[0] is not softmax.outputs[0]:
        raise Miss(softmax, "its result is used for more than one product with v")
    last = len(batches.shape(softmax.outputs[0]) or ())
    if last != 4 or softmax.attributes.get_int("axis", -1) not in (-1, 3):
        raise Miss(softmax, f"it is not over the last of four dimensions, but of {last}")
    shape = batches.per_image(product.outputs[0])
    if shape is None or len(shape) != 4 or shape[2] != shape[3]:
        raise Miss(product, f"its result is not [batch * windows, heads, tokens, tokens], but {shape or 'unknown'}")
    windows, heads, tokens, _ = shape
    scale, added = _folded(steps, product, shape, batches)
    q, q_scale = _without_scalars(product.inputs[0], batches)
    k, k_scale, transposed = _untransposed(product.inputs[1], batches)
    depth = (batches.shape(q) or (0,))[-1]
    for value in (q, context.inputs[1]):
        if value is None or batches.per_image(value) != (windows, heads, tokens, depth):
            raise Miss(product, f"q and v are not [batch * {windows}, {heads}, {tokens}, {depth}]")
    assert context.inputs[1] is not None
    return Attention(
        product=product,
        softmax=softmax,
        context=context,
        q=q,
        k=k,
        v=context.inputs[1],
        k_is_transposed=transposed,
        windows=windows,
        heads=heads,
        tokens=tokens,
        depth=depth,
        scale=scale * q_scale * k_scale,
        added=added,
        dtype=batches.known[0].dtype(product.outputs[0]),
        plain=[step.op_type for step in steps] == ["Add"],
    )


def _folded(
    steps: list[onnx_ir.Node], product: onnx_ir.Node, shape: tuple[int, ...], batches: Batches
) -> tuple[Any, Any]:
    """Scale [1] or [h], and the sum of what was added, of which `[windows, h, S, S]` is the largest shape."""
    import numpy as np

    scale, added = np.ones((1, 1, 1, 1)), np.zeros((1, 1, 1, 1))
    current = product.outputs[0]
    for step in steps:
        if only_user(current) is not step:
            raise Miss(step, "the scores are used elsewhere as well")
        if step.op_type == "Reshape":
            _check_view(step, shape, batches)
        else:
            constant = _constant_of(step, current, shape, batches)
            if step.op_type == "Add":
                added = added + constant
            else:
                factor = constant if step.op_type == "Mul" else 1 / constant
                scale, added = scale * factor, added * factor
        current = step.outputs[0]
    if scale.shape[0] != 1 or scale.shape[2:] != (1, 1):
        raise Miss(product, "its scale is not one number a head")
    return scale.reshape(-1), added


def _check_view(step: onnx_ir.Node, shape: tuple[int, ...], batches: Batches) -> None:
    """Only [X, h, S, S] and [batch, windows, h, S, S] keep their meaning as they are reshaped."""
    for size, known in zip(batches.sizes, batches.known, strict=True):
        found = known.shape(step.outputs[0])
        if found not in ((size * shape[0], *shape[1:]), (size, *shape)):
            raise Miss(step, f"at batch {size} it makes {found} of the scores")


def _constant_of(step: onnx_ir.Node, current: onnx_ir.Value, shape: tuple[int, ...], batches: Batches) -> Any:
    """The constant operand, float64, as [windows or 1, h or 1, S or 1, S or 1]: the same for each image of a batch."""
    import numpy as np

    other = step.inputs[1] if step.inputs[0] is current else step.inputs[0]
    arrays = batches.data(other)
    if arrays is None:
        raise Miss(step, "what it combines the scores with is not constant")
    found = []
    for size, known, array in zip(batches.sizes, batches.known, arrays, strict=True):
        full = known.shape(current) or ()
        array = array.reshape((1,) * (len(full) - array.ndim) + array.shape).astype(np.float64)
        if len(full) == 4 and array.shape[0] != 1:
            array = array.reshape(size, shape[0], *array.shape[1:])
        elif len(full) == 4:
            array = array[None]
        if known.shape(step.outputs[0]) != full or not (array == array[:1]).all():
            raise Miss(step, "what it combines the scores with is not the same for each image of a batch")
        found.append(array[0])
    if any(one.shape != found[0].shape or not np.array_equal(one, found[0]) for one in found):
        raise Miss(step, "what it combines the scores with changes with the batch")
    return found[0]


def _without_scalars(value: onnx_ir.Value | None, batches: Batches) -> tuple[onnx_ir.Value, float]:
    """Past multiplications by one number."""
    assert value is not None
    factor = 1.0
    while (node := value.producer()) is not None and node.op_type in ("Mul", "Div") and only_user(value) is not None:
        known = batches.known[0]
        slot = 0 if known.data(node.inputs[1]) is not None else 1
        number, data = known.data(node.inputs[1 - slot]), node.inputs[slot]
        if number is None or number.size != 1 or data is None or (node.op_type == "Div" and slot == 1):
            break
        factor *= float(number.item()) if node.op_type == "Mul" else 1 / float(number.item())
        value = data
    return value, factor


def _untransposed(value: onnx_ir.Value | None, batches: Batches) -> tuple[onnx_ir.Value, float, bool]:
    """k, past scalars and past the transposition of its last two dimensions."""
    k, factor = _without_scalars(value, batches)
    node = k.producer()
    if node is None or node.op_type != "Transpose" or node.attributes.get_ints("perm", ()) != (0, 1, 3, 2):
        return k, factor, True
    k, more = _without_scalars(node.inputs[0], batches)
    return k, factor * more, False
