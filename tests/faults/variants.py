"""Correct graphs that look wrong to somebody: each computes what the digits Swin computes, written in another way.

`write` edits the graph that the plan is built from. What it changes is rounding at most.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from planting import (
    Model,
    Splice,
    attention_adds,
    change,
    constant,
    constant_slot,
    data,
    find,
    inside,
    layers,
    maker,
    norms,
    residual_sums,
)


@dataclass(frozen=True)
class Variant:
    name: str
    what: str
    write: Callable[[Model], None]


VARIANTS: list[Variant] = []
DEPTH, HEADS, TOKENS = 8, 4, 49
"""Of the digits Swin's first stage."""


def variant(what: str) -> Callable[[Callable[[Model], None]], Callable[[Model], None]]:
    def listed(write: Callable[[Model], None]) -> Callable[[Model], None]:
        VARIANTS.append(Variant(write.__name__.replace("_", " "), what, write))
        return write

    return listed


@variant("a weight is stored transposed, and transposed where it is used")
def weight_transposed_twice(model: Model) -> None:
    node = layers(model)[4]
    change(model, node, 1, lambda weight: weight.T)
    stored = node.inputs[1]
    assert stored is not None
    turned = ir.node("Transpose", [stored], attributes={"perm": [1, 0]}, name="turned")
    turned.outputs[0].type, turned.outputs[0].name = stored.type, "turned"
    model.graph.insert_before(node, turned)
    node.replace_input_with(1, turned.outputs[0])


@variant("the heads of a block are in another order everywhere")
def heads_permuted(model: Model) -> None:
    order = np.array([2, 0, 3, 1])
    columns = (order[:, None] * DEPTH + np.arange(DEPTH)).reshape(-1)
    q, k, v, projection = layers(model)[1:5]
    for node in (q, k, v):
        change(model, node, 1, lambda weight: weight[:, columns])
    change(model, projection, 1, lambda weight: weight[columns])
    add = attention_adds(model)[0]

    def edit(bias: np.ndarray) -> np.ndarray:
        apart = bias.reshape(-1, HEADS, TOKENS, TOKENS)
        return apart[:, order].reshape(bias.shape)

    change(model, add, constant_slot(add), edit)


@variant("half of the scale of q is in k")
def scale_moved(model: Model) -> None:
    q, k = layers(model)[1:3]
    change(model, q, 1, lambda weight: weight * 4)
    change(model, k, 1, lambda weight: weight / 4)


@variant("a LayerNorm's gain and bias are in the product behind it")
def gain_folded(model: Model) -> None:
    norm = norms(model)[2]
    (product,) = inside(norm).consumers()
    (add,) = inside(product).consumers()
    gain, shift, weight = (data(v) for v in (norm.inputs[1], norm.inputs[2], product.inputs[1]))
    change(model, product, 1, lambda _: gain[:, None] * weight)
    change(model, add, constant_slot(add), lambda bias: bias + shift @ weight)
    change(model, norm, 1, np.ones_like)
    change(model, norm, 2, np.zeros_like)


@variant("attention over tokens padded from 49 to 56, the new ones under a mask")
def tokens_padded(model: Model) -> None:
    add, extra = attention_adds(model)[0], 56 - TOKENS
    slot = constant_slot(add)
    change(model, add, slot, lambda bias: np.pad(bias, ((0, 0), (0, 0), (0, 0), (0, extra)), constant_values=-1e4))
    scores = maker(add.inputs[1 - slot])
    context = find(model, "MatMul", lambda n: n.inputs[0] is not None and _softmax_above(n))
    for node, slot_, pads in ((scores, 1, [0] * 7 + [extra]), (context, 1, [0] * 6 + [extra, 0])):
        value = node.inputs[slot_]
        assert value is not None
        new = Splice(model, value)
        new.end(new.node("Pad", value, new.number(pads)))
    for node in model.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None


def _softmax_above(node: ir.Node) -> bool:
    value = node.inputs[0]
    above = value.producer() if value is not None else None
    while above is not None and above.op_type == "Cast":
        above = above.inputs[0].producer() if above.inputs[0] is not None else None
    return above is not None and above.op_type == "Softmax"


@variant("softmax written out")
def softmax_by_hand(model: Model) -> None:
    node = find(model, "Softmax")
    x, new = node.inputs[0], Splice(model, inside(node))
    assert x is not None
    axes = new.number([-1])
    power = new.node("Exp", new.node("Sub", x, new.node("ReduceMax", x, axes, keepdims=1)))
    new.end(new.node("Div", power, new.node("ReduceSum", power, axes, keepdims=1)))


@variant("LayerNorm written out, in fp32 between two casts")
def layer_norm_by_hand(model: Model) -> None:
    norm = norms(model)[2]
    x, gain, shift = norm.inputs[:3]
    assert x is not None
    assert gain is not None
    assert shift is not None
    new, axes = Splice(model, inside(norm)), constant(model, np.array([-1]))
    full, low = ir.DataType.FLOAT, x.dtype
    assert low is not None
    wide = new.node("Cast", x, dtype=full, to=int(full))
    centred = new.node("Sub", wide, new.node("ReduceMean", wide, axes, keepdims=1))
    variance = new.node("ReduceMean", new.node("Mul", centred, centred), axes, keepdims=1)
    epsilon = constant(model, np.array(norm.attributes.get_float("epsilon", 1e-5), np.float32))
    scaled = new.node("Div", centred, new.node("Sqrt", new.node("Add", variance, epsilon)))
    narrow = new.node("Cast", scaled, dtype=low, to=int(low))
    new.end(new.node("Add", new.node("Mul", narrow, gain), shift))


@variant("residual sums with their operands exchanged, as Sum")
def sums_exchanged(model: Model) -> None:
    for node in residual_sums(model):
        one, other = node.inputs
        node.replace_input_with(0, other)
        node.replace_input_with(1, one)
        node.op_type = "Sum"


@variant("nodes that do nothing: Identity, two transpositions, two negations")
def nothing_added(model: Model) -> None:
    new = Splice(model, inside(residual_sums(model)[1]))
    value = new.node("Neg", new.node("Neg", new.node("Identity", new.old)))
    turned = new.node("Transpose", value, perm=[0, 2, 1, 3] if len(new.old.shape or ()) == 4 else [0, 2, 1])
    new.end(new.node("Transpose", turned, perm=[0, 2, 1, 3] if len(new.old.shape or ()) == 4 else [0, 2, 1]))


@variant("no tensor and no node has the name it had")
def names_changed(model: Model) -> None:
    outputs = set(model.graph.outputs)
    for index, node in enumerate(model.graph):
        node.name = f"n{index}"
        node.metadata_props.clear()
        for value in node.outputs:
            if value not in outputs:
                value.name = f"t{index}"


@variant("the classifier as a product and a sum")
def gemm_apart(model: Model) -> None:
    node = find(model, "Gemm")
    x, weight, bias = node.inputs[:3]
    assert x is not None
    assert bias is not None
    new = Splice(model, inside(node))
    turned = data(weight).T if node.attributes.get_int("transB", 0) else data(weight)
    product = new.node("MatMul", x, constant(model, np.ascontiguousarray(turned), weight))
    new.end(new.node("Add", product, bias))


@variant("the mean over the tokens as a sum, divided")
def mean_by_sum(model: Model) -> None:
    node = find(model, "ReduceMean")
    x, axes = node.inputs[:2]
    assert x is not None
    assert axes is not None
    new = Splice(model, inside(node))
    count = constant(model, np.array(TOKENS, np.float32), x)
    total = new.node("ReduceSum", x, axes, keepdims=node.attributes.get_int("keepdims", 1))
    new.end(new.node("Div", total, count))


@variant("a row of zeros joins every batch, and leaves it at the end")
def batch_padded(model: Model) -> None:
    new = Splice(model, inside(find(model, "Cast")))
    zero, one, last = new.number([0]), new.number([1]), new.number([-1])
    row = new.node("Mul", new.node("Slice", new.old, zero, one, zero), new.number(0.0))
    new.end(new.node("Concat", new.old, row, axis=0))
    end = Splice(model, inside(find(model, "Gemm")))
    end.end(end.node("Slice", end.old, zero, last, zero))


@variant("attention's products as Einsum")
def einsum(model: Model) -> None:
    node = find(model, "MatMul", _softmax_above)
    a, b = node.inputs
    assert a is not None
    assert b is not None
    new = Splice(model, inside(node))
    new.end(new.node("Einsum", a, b, equation="bhst,bhtd->bhsd"))
