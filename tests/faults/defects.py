"""Defects of graphs: each is planted in the graph that a plan is built from, as a wrong pass or exporter would.

`plant` edits a graph as `trtship deploy` makes it of the digits Swin and returns the names of the nodes that are guilty
now. `caught_by` are checks of `trtship verify` that must each notice.
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
    attribute,
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

Guilty = tuple[str, ...]


@dataclass(frozen=True)
class Defect:
    name: str
    what: str
    plant: Callable[[Model], Guilty]
    caught_by: tuple[str, ...]
    precision: str = "fp16"


DEFECTS: list[Defect] = []


def defect(
    what: str, *caught_by: str, precision: str = "fp16"
) -> Callable[[Callable[[Model], Guilty]], Callable[[Model], Guilty]]:
    def listed(plant: Callable[[Model], Guilty]) -> Callable[[Model], Guilty]:
        DEFECTS.append(Defect(plant.__name__.replace("_", " "), what, plant, caught_by, precision))
        return plant

    return listed


def named(*nodes: ir.Node) -> Guilty:
    return tuple(node.name or "" for node in nodes)


# ---- rows of a batch


@defect("each image gets 5 % of the batch's mean", "rel_l2", "changed_row")
def batch_leakage(model: Model) -> Guilty:
    new = Splice(model, inside(residual_sums(model)[0]))
    mean = new.node("ReduceMean", new.old, new.number([1]), keepdims=1)
    return new.end(new.node("Add", new.old, new.node("Mul", mean, new.number(0.05))))


@defect("a reshape has the batch that was traced, 2, as a constant", "rel_l2", "identical_rows")
def batch_frozen(model: Model) -> Guilty:
    node = find(model, "Reshape", lambda n: "window order" in (n.name or "") and len(data(n.inputs[1])) == 6)
    return named(change(model, node, 1, lambda shape: np.array([2, *shape[1:-1], -1])))


@defect("a reshape takes a batch of 2 and no other", "rel_l2", "identical_rows")
def batch_fixed(model: Model) -> Guilty:
    node = find(model, "Reshape", lambda n: "window order" in (n.name or "") and len(data(n.inputs[1])) == 6)
    return named(change(model, node, 1, lambda shape: np.array([2, *shape[1:]])))


@defect("output rows change places", "rel_l2", "permuted_rows")
def rows_swapped(model: Model) -> Guilty:
    new = Splice(model, inside(find(model, "Gemm")))
    step = new.number([-1])
    low = new.number([-(2**31)])
    return new.end(new.node("Slice", new.old, new.number([2**31 - 1]), low, new.number([0]), step))


@defect("row 2 and those after it are made from row 0", "rel_l2", "permuted_rows")
def rows_beyond_two_repeat_the_first(model: Model) -> Guilty:
    new = Splice(model, inside(find(model, "Gemm")))
    zero, two, end, one = new.number([0]), new.number([2]), new.number([2**31 - 1]), new.number([1])
    head = new.node("Slice", new.old, zero, two, zero)
    tail = new.node("Slice", new.old, two, end, zero)
    first = new.node("Slice", new.old, zero, one, zero)
    flat = new.node("Sub", tail, tail)
    return new.end(new.node("Concat", head, new.node("Add", flat, first), axis=0))


# ---- attention


@defect("the position biases of two heads change places", "rel_l2")
def heads_swapped(model: Model) -> Guilty:
    def edit(bias: np.ndarray) -> np.ndarray:
        bias = bias.copy()
        bias[:, [0, 1]] = bias[:, [1, 0]]
        return bias

    node = attention_adds(model)[0]
    return named(change(model, node, constant_slot(node), edit))


@defect("one shifted block attends across its mask", "rel_l2")
def mask_dropped(model: Model) -> Guilty:
    node = next(n for n in attention_adds(model) if (data(n.inputs[constant_slot(n)]) < -50).any())
    return named(change(model, node, constant_slot(node), lambda bias: np.where(bias < -50, bias + 100, bias)))


@defect("softmax over the queries, not the keys", "rel_l2")
def softmax_axis(model: Model) -> Guilty:
    return named(attribute(find(model, "Softmax"), axis=-2))


@defect("q is not divided by the square root of its depth", "rel_l2")
def scale_dropped(model: Model) -> Guilty:
    return named(change(model, layers(model)[1], 1, lambda weight: weight * np.sqrt(8)))


@defect("a window rolled by one token too many", "rel_l2")
def roll_off_by_one(model: Model) -> Guilty:
    ends = find(model, "Concat", lambda n: all(v is not None and v.producer() is not None for v in n.inputs))
    parts = [maker(value) for value in ends.inputs]
    for node in parts:
        for slot in (1, 2):
            change(model, node, slot, lambda edge: np.where(edge == 3, edge + 1, edge))
    return named(*parts)


@defect("q and k are made by each other's weights in one block", "rel_l2")
def q_and_k_swapped(model: Model) -> Guilty:
    q, k = layers(model)[1:3]
    weights = data(q.inputs[1]), data(k.inputs[1])
    change(model, q, 1, lambda _: weights[1] / np.sqrt(8))
    change(model, k, 1, lambda _: weights[0])
    return named(q, k)


# ---- weights and constants


@defect("a square weight is transposed", "rel_l2")
def weight_transposed(model: Model) -> Guilty:
    return named(change(model, layers(model)[4], 1, lambda weight: weight.T))


@defect("every weight comes from another checkpoint", "rel_l2")
def stale_weights(model: Model) -> Guilty:
    rng = np.random.default_rng(0)
    nodes = layers(model)
    for node in nodes:
        change(model, node, 1, lambda w: rng.permutation(w.reshape(-1)).reshape(w.shape))
    return named(*nodes)


@defect("a LayerNorm has lost its gain", "rel_l2")
def gain_dropped(model: Model) -> Guilty:
    return named(change(model, norms(model)[2], 1, np.ones_like))


@defect("epsilon 1e-3 where the model has 1e-5", "rel_l2", precision="fp32")
def wrong_epsilon(model: Model) -> Guilty:
    return named(attribute(norms(model)[2], epsilon=1e-3))


@defect("GELU by its tanh approximation", "rel_l2", precision="fp32")
def gelu_tanh(model: Model) -> Guilty:
    return named(attribute(find(model, "Gelu"), approximate="tanh"))


@defect("GELU as x sigmoid(1.702 x), in every block", "rel_l2")
def gelu_sigmoid(model: Model) -> Guilty:
    nodes = [n for n in model.graph if n.op_type == "Cast" and (n.name or "").endswith("/gelu/Cast_2")]
    found: list[str] = []
    for node in nodes:
        start = find(model, "Cast", lambda n, node=node: n.name == (node.name or "").removesuffix("_2"))
        x = start.inputs[0]
        assert x is not None
        new = Splice(model, inside(node))
        found += new.end(new.node("Mul", x, new.node("Sigmoid", new.node("Mul", x, new.number(1.702)))))
    return tuple(found)


@defect("patch merging reads its four tokens in another order", "rel_l2")
def merging_order(model: Model) -> Guilty:
    node = find(model, "Transpose", lambda n: tuple(n.attributes.get_ints("perm", ())) == (0, 1, 3, 4, 2, 5))
    return named(attribute(node, perm=(0, 1, 3, 2, 4, 5)))


@defect("the sum around an MLP is left out", "rel_l2")
def residual_dropped(model: Model) -> Guilty:
    node = residual_sums(model)[1]
    new = Splice(model, inside(node))
    branch = node.inputs[1]
    assert branch is not None
    return new.end(new.node("Identity", branch))


# ---- number formats


@defect("a LayerNorm in fp16 squares numbers of more than 256", "rel_l2")
def layer_norm_overflows(model: Model) -> Guilty:
    norm = norms(model)[2]
    x, gain, bias = norm.inputs[:3]
    assert x is not None
    assert gain is not None
    assert bias is not None
    new = Splice(model, inside(norm))
    large = new.node("Mul", x, new.number(2000.0))
    axes = new.number([-1])
    centred = new.node("Sub", large, new.node("ReduceMean", large, axes, keepdims=1))
    square = new.node("Mul", centred, centred)
    deviation = new.node("Sqrt", new.node("ReduceMean", square, axes, keepdims=1))
    scaled = new.node("Mul", new.node("Div", centred, deviation), gain)
    new.end(new.node("Add", scaled, bias))
    return (square.name or "",)


@defect("int8 with a scale ten times too small: most activations saturate", "rel_l2")
def int8_saturates(model: Model) -> Guilty:
    return quantized(model, 0.1)


def quantized(model: Model, factor: float, *, amax: float = 4.0) -> Guilty:
    """Q and DQ ahead of the first MLP, for magnitudes up to `factor * amax`; 4 is what a LayerNorm's result has."""
    new = Splice(model, inside(norms(model)[2]))
    scale = constant(model, np.array(factor * amax / 127, np.float32), new.old)
    zero = constant(model, np.array(0, np.int8))
    q = new.node("QuantizeLinear", new.old, scale, zero, dtype=ir.DataType.INT8)
    return new.end(new.node("DequantizeLinear", q, scale, zero, dtype=new.old.dtype))


@defect("inputs beyond 2 are clipped, as by a range seen in calibration", "edge_inputs")
def input_clipped(model: Model) -> Guilty:
    new = Splice(model, inside(find(model, "Cast")))
    return new.end(new.node("Clip", new.old, new.number(-2.0), new.number(2.0)))


@defect("a picture of one colour gives NaN: it is divided by its contrast", "edge_inputs")
def constant_image(model: Model) -> Guilty:
    new = Splice(model, inside(find(model, "Cast")))
    axes = new.number([1, 2, 3])
    low = new.node("ReduceMin", new.old, axes, keepdims=1)
    contrast = new.node("Sub", new.node("ReduceMax", new.old, axes, keepdims=1), low)
    one = new.node("Div", contrast, contrast)
    new.end(new.node("Mul", new.old, one))
    return (one.name or "",)
