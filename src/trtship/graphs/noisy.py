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
from typing import TYPE_CHECKING

import numpy as np

from trtship.graphs.rounding import DEVIATION
from trtship.graphs.roundings import roundings_of
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


def noise_sizes(model: onnx_ir.Model, precision: Precision) -> dict[onnx_ir.Node, float]:
    """For each node of the strongly typed graph, the relative size of its error at `precision`: one deviation of all
    its roundings (`trtship.graphs.roundings`). Infers the graph's types in place."""
    from onnx_ir.passes.common import ShapeInferencePass

    ShapeInferencePass()(model)
    return {node: DEVIATION * math.sqrt(roundings_of(node, precision).variance) for node in model.graph}


def add_noise(model: onnx_ir.Model, sizes: Mapping[onnx_ir.Node, float]) -> int:
    """Give every float32 tensor that is computed from an input's elements an error of its node's size, and the graph
    the input `DRAW`, a float32 scalar in [1, 2). Edits `model`; returns how many nodes became noisy."""
    import onnx_ir as ir

    largest = max(sizes.values(), default=0.0)
    noisy = [node for node in _computed_from_data(model) if sizes.get(node, 0.0) > NEGLIGIBLE * largest]
    scalars = _Scalars(model.graph)
    for node in noisy:
        for value in list(node.outputs):
            if value.dtype == ir.DataType.FLOAT:
                _disturb(model.graph, node, value, scalars, sizes[node])
    return len(noisy)


def _computed_from_data(model: onnx_ir.Model) -> list[onnx_ir.Node]:
    """The nodes that work on the elements of an input, and not on its shape."""
    data = {value for value in model.graph.inputs if value.name not in model.graph.initializers}
    found = []
    for node in model.graph:
        if node.op_type in ("Shape", "Size") or not any(value in data for value in node.inputs):
            continue
        data.update(node.outputs)
        found.append(node)
    return found


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

    def constant(self, number: float) -> onnx_ir.Value:
        import onnx_ir as ir

        self._count += 1
        tensor = ir.tensor(np.array(number, np.float32), name=f"trtship.noise.{self._count}")
        value = ir.Value(name=tensor.name, shape=ir.Shape([]), type=ir.TensorType(tensor.dtype), const_value=tensor)
        self._graph.register_initializer(value)
        return value


def _disturb(graph: onnx_ir.Graph, node: onnx_ir.Node, value: onnx_ir.Value, scalars: _Scalars, size: float) -> None:
    import onnx_ir as ir

    def made(op: str, *inputs: onnx_ir.Value) -> onnx_ir.Value:
        nodes.append(ir.Node("", op, inputs))
        return nodes[-1].outputs[0]

    nodes: list[onnx_ir.Node] = []
    disturbed = ir.Value(name=f"{value.name}/noisy", shape=value.shape, type=value.type)
    value.replace_all_uses_with(disturbed, replace_graph_outputs=True)
    if disturbed.is_graph_output():
        value.name, disturbed.name = f"{value.name}/exact", value.name
    plain = made("Clip", value, scalars.low, scalars.high)
    scaled = made("Mul", plain, scalars.draw)
    split = made("Mul", plain, scalars.split)
    high = made("Sub", split, made("Sub", split, scaled))
    strength = made("Mul", scalars.inverse, scalars.constant(size / (DEVIATION * SPLIT_ROUNDOFF)))
    error = made("Mul", made("Sub", high, scaled), strength)
    nodes.append(ir.Node("", "Add", [value, error], outputs=[disturbed]))
    graph.insert_after(node, nodes)
