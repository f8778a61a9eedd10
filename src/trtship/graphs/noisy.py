"""A graph that runs in fp32 and makes, at every operator, an error of the size that its precision would make there.

The errors come from rounding itself. With a random number s in [1, 2), drawn anew for each run, a tensor x is scaled,
rounded to 12 bits by Veltkamp's splitting (Dekker, "A Floating-Point Technique for Extending the Available
Precision", Numer. Math. 18, 1971), and what that takes away is added to x in the size wanted:

    t = s x,   c = (2^12 + 1) t,   hi = c - (c - t),   x + (hi - t) k / s

so that equal numbers get equal errors, as in real rounding, a number that happens to be representable gets one too,
and nothing overflows: only the significand is rounded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from trtship.graphs.noisy_means import mean_error, shifted
from trtship.graphs.operators import PRODUCTS
from trtship.graphs.positions import stepwise_nodes
from trtship.graphs.rounding import DEVIATION
from trtship.graphs.roundings import FULL, TF32, roundings_of
from trtship.graphs.slots import is_exact, is_size
from trtship.spec import Precision

if TYPE_CHECKING:
    import onnx_ir

DRAW = "trtship.draw"
"""Name of the scalar input s."""
SPLIT = 2.0**12 + 1
SPLIT_ROUNDOFF = 2.0**-12
LARGEST = 1e30
"""Numbers beyond it (masks of -inf) are noiseless: splitting would overflow."""
NEGLIGIBLE = 1 / 64
"""Of the largest error: left out, since even thousands such would not add up to it (they add in squares)."""


class Sizes(msgspec.Struct, frozen=True):
    """Relative size of a node's error, one deviation: of its `result`, of the `operand` that a product reads, of its
    `constants`, weights above all, that were rounded before, and of the `mean` that a normalisation subtracts
    (`trtship.graphs.noisy_means`).

    What happens to a term of an inner product belongs to the operand: that TF32 rounds it, that partial sums are
    rounded. Where large terms cancel, it is large against the result. A constant has the same error wherever it is
    used: no average over tokens takes it away, and an image of one colour makes it the whole of the error.
    """

    result: float
    operand: float = 0.0
    constants: float = 0.0
    mean: float = 0.0

    @property
    def largest(self) -> float:
        """Of those that every row has: that of a mean is nothing where the mean is small."""
        return max(self.result, self.operand, self.constants)


def noise_sizes(model: onnx_ir.Model, precision: Precision, *, amplified: float = 1.0) -> dict[onnx_ir.Node, Sizes]:
    """For each node of the strongly typed graph, `amplified` times the error that it makes at `precision`, from all its
    roundings (`trtship.graphs.roundings`). Infers the graph's types in place."""
    from onnx_ir.passes.common import ShapeInferencePass

    ShapeInferencePass()(model)
    return {node: _sizes_of(node, precision, DEVIATION * amplified) for node in model.graph}


def _sizes_of(node: onnx_ir.Node, precision: Precision, unit: float) -> Sizes:
    rounding = roundings_of(node, precision)
    rounded = precision.unit_roundoff if rounding.low > 1 else TF32 if rounding.tf32 else 0.0
    constants = rounded if any(map(_is_array, node.inputs)) else 0.0
    variance = rounding.variance - constants * constants
    if node.op_type not in PRODUCTS or not variance:
        return Sizes(unit * math.sqrt(variance), constants=unit * constants, mean=unit * mean_error(node))
    kinds = {value.dtype.name for value in node.outputs if value.dtype is not None}
    last = FULL if kinds == {"FLOAT"} else precision.unit_roundoff
    return Sizes(unit * last, unit * math.sqrt(max(variance - last * last, 0.0)), unit * constants)


def _is_array(value: onnx_ir.Value | None) -> bool:
    """Whether it is a constant of several numbers. (A single one is most often exact: 0.5, 2.)"""
    return value is not None and value.const_value is not None and value.const_value.size > 1


def add_noise(model: onnx_ir.Model, sizes: Mapping[onnx_ir.Node, Sizes], *, untied: bool = False) -> int:
    """Give the float32 tensors that are computed from an input's elements errors of these sizes.

    Args:
        model: The graph, which is edited: it gets the input `DRAW`, a float32 scalar in [1, 2).
        sizes: The sizes of the errors, by node.
        untied: Whether the terms of a product with constants err independently, as partial sums do, even where they are
            equal: those of an edge filter on a flat picture cancel, and what rounding leaves is the output. As an error
            of the constants, it is the same for all pixels, and no average takes it away: larger than it is elsewhere.

    Returns:
        How many nodes became noisy.
    """
    least = NEGLIGIBLE * max((s.largest for s in sizes.values()), default=0.0)
    scalars = _Scalars(model.graph)
    noisy = 0
    for node, slot in _working_on_data(model):
        found = sizes.get(node, Sizes(0.0))
        for place, value in enumerate(node.inputs if found.constants > least else ()):
            if value is not None and _is_array(value) and _is_float(value) and not is_exact(node.op_type, place):
                _disturb_operand(model.graph, node, place, scalars, found.constants)
        if found.operand > least:
            _disturb_operand(model.graph, node, slot, scalars, found.operand)
            for place, value in enumerate(node.inputs[:2] if untied else ()):
                if value is not None and _is_array(value) and _is_float(value):
                    _disturb_operand(model.graph, node, place, scalars, found.operand, untied=True)
        if found.result > least:
            for value in filter(_is_float, list(node.outputs)):
                _disturb_result(model.graph, node, value, scalars, found.result)
        if found.mean > least and _is_float(node.outputs[0]) and node.inputs[0] is not None:
            _disturb_mean(model, node, scalars, found.mean)
        noisy += found.largest > least
    return noisy


def _working_on_data(model: onnx_ir.Model) -> list[tuple[onnx_ir.Node, int]]:
    """Return the nodes that work on the elements of an input, and the first slot at which each does.

    What works on a shape, or with a size (`trtship.graphs.slots.SIZES`), is exact. So are the positions that indices
    and steps are made of.
    """
    stepwise = stepwise_nodes(model.graph)
    data = {value for value in model.graph.inputs if value.name not in model.graph.initializers}
    found = []
    for node in model.graph:
        slots = [slot for slot, value in enumerate(node.inputs) if value in data and not is_size(node.op_type, slot)]
        if slots:
            data.update(node.outputs)
            if node not in stepwise:
                found.append((node, slots[0]))
    return found


def _is_float(value: onnx_ir.Value) -> bool:
    return value.dtype is not None and value.dtype.name == "FLOAT"


class _Scalars:
    """s, s times the splitter, and 1 / s, made once; and constants."""

    def __init__(self, graph: onnx_ir.Graph) -> None:
        import onnx_ir as ir

        self._graph, self._count = graph, 0
        self.draw = ir.Value(name=DRAW, shape=ir.Shape([]), type=ir.TensorType(ir.DataType.FLOAT))
        graph.inputs.append(self.draw)
        first = graph[0]
        self.low, self.high = self.constant(-LARGEST), self.constant(LARGEST)
        split = ir.Node("", "Mul", [self.draw, self.constant(SPLIT)])
        inverse = ir.Node("", "Reciprocal", [self.draw])
        graph.insert_before(first, [split, inverse])
        self.split, self.inverse = split.outputs[0], inverse.outputs[0]

    def factors(self, value: onnx_ir.Value) -> onnx_ir.Value:
        """Another number in [1, 2) for each element of a constant."""
        assert value.const_value is not None
        rng = np.random.default_rng(self._count)
        return self.constant(rng.uniform(1, 2, value.const_value.numpy().shape))

    def constant(self, number: Any) -> onnx_ir.Value:
        import onnx_ir as ir

        self._count += 1
        array = np.asarray(number, np.float32)
        tensor = ir.tensor(array, name=f"trtship.noise.{self._count}")
        shape = ir.Shape(array.shape)
        value = ir.Value(name=tensor.name, shape=shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        self._graph.register_initializer(value)
        return value


def _disturb_result(
    graph: onnx_ir.Graph, node: onnx_ir.Node, value: onnx_ir.Value, scalars: _Scalars, size: float
) -> None:
    """All who read `value`, which `node` makes, read it with an error."""
    graph.insert_after(node, _erring(value, _in_place_of(value, "noisy"), scalars, size))


def _disturb_mean(model: onnx_ir.Model, node: onnx_ir.Node, scalars: _Scalars, size: float) -> None:
    """All who read the result of the normalisation `node` read it as of a mean with an error."""

    def erring(value: onnx_ir.Value, disturbed: onnx_ir.Value, size: float) -> list[onnx_ir.Node]:
        return _erring(value, disturbed, scalars, size)

    new, opset = _in_place_of(node.outputs[0], "shifted"), model.opset_imports.get("", 1)
    model.graph.insert_after(node, shifted(model.graph, node, new=new, size=size, opset=opset, erring=erring))


def _in_place_of(value: onnx_ir.Value, kind: str) -> onnx_ir.Value:
    """A value that all who read `value` read from now on. A graph output keeps its name."""
    import onnx_ir as ir

    new = ir.Value(name=f"{value.name}/{kind}", shape=value.shape, type=value.type)
    value.replace_all_uses_with(new, replace_graph_outputs=True)
    if new.is_graph_output():
        value.name, new.name = f"{value.name}/before/{kind}", value.name
    return new


def _disturb_operand(
    graph: onnx_ir.Graph, node: onnx_ir.Node, slot: int, scalars: _Scalars, size: float, *, untied: bool = False
) -> None:
    """`node` alone reads its input with an error; `untied`: one that equal elements of a constant do not share."""
    import onnx_ir as ir

    value = node.inputs[slot]
    assert value is not None
    factors = scalars.factors(value) if untied else None
    disturbed = ir.Value(name=f"{value.name}/noisy/{node.outputs[0].name}/{slot}", shape=value.shape, type=value.type)
    graph.insert_before(node, _erring(value, disturbed, scalars, size, factors=factors))
    node.replace_input_with(slot, disturbed)


def _erring(
    value: onnx_ir.Value,
    disturbed: onnx_ir.Value,
    scalars: _Scalars,
    size: float,
    *,
    factors: onnx_ir.Value | None = None,
) -> list[onnx_ir.Node]:
    """The nodes that make `disturbed` of `value`; with `factors`, each element is scaled by its own before it is split,
    and back."""
    import onnx_ir as ir

    def made(op: str, *inputs: onnx_ir.Value) -> onnx_ir.Value:
        nodes.append(ir.Node("", op, inputs))
        return nodes[-1].outputs[0]

    nodes: list[onnx_ir.Node] = []
    plain = made("Clip", value, scalars.low, scalars.high)
    plain = plain if factors is None else made("Mul", plain, factors)
    scaled = made("Mul", plain, scalars.draw)
    split = made("Mul", plain, scalars.split)
    high = made("Sub", split, made("Sub", split, scaled))
    strength = made("Mul", scalars.inverse, scalars.constant(size / (DEVIATION * SPLIT_ROUNDOFF)))
    error = made("Mul", made("Sub", high, scaled), strength)
    error = error if factors is None else made("Div", error, factors)
    nodes.append(ir.Node("", "Add", [value, error], outputs=[disturbed]))
    return nodes
