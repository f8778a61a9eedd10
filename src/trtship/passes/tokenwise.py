"""Operators that treat each token by itself: they give the same whatever order the tokens are in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trtship.passes.batches import Batches
from trtship.passes.movements import positions, users

if TYPE_CHECKING:
    import onnx_ir

ALONE = frozenset(
    {"Cast", "Clip", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Log"}
)
ALONE |= {"Mish", "Neg", "Reciprocal", "Relu", "Sigmoid", "Softplus", "Sqrt", "Tanh"}
TOGETHER = frozenset({"Add", "Sub", "Mul", "Div", "Pow", "Max", "Min"})
REDUCTIONS = frozenset({"ReduceMean", "ReduceSum", "ReduceL2", "ReduceSumSquare", "ReduceMax"})


@dataclass(frozen=True)
class Tokenwise:
    """What is tokenwise in a graph for maps of `tokens` tokens an image."""

    batches: Batches
    tokens: int

    def holds(self, value: onnx_ir.Value | None) -> bool:
        """Whether `value` is a map of that many tokens: [B, ..., C]."""
        import math

        shape = self.batches.per_image(value)
        return shape is not None and len(shape) > 2 and shape[0] == 1 and math.prod(shape[1:-1]) == self.tokens

    def sources(self, node: onnx_ir.Node) -> list[onnx_ir.Value] | None:
        """The maps that a tokenwise node reads; None where it is not tokenwise."""
        reads = [v for v in node.inputs if v is not None and self.batches.known[0].data(v) is None]
        if len(node.outputs) != 1 or not reads or not all(map(self.holds, (*reads, node.outputs[0]))):
            return None
        return reads if self._is_tokenwise(node, reads) else None

    def _is_tokenwise(self, node: onnx_ir.Node, reads: list[onnx_ir.Value]) -> bool:
        first, op = node.inputs[0], node.op_type
        last = len(self.batches.shape(reads[0]) or ()) - 1
        if op in ALONE:
            return True
        if op in TOGETHER:
            maps = {(self.batches.shape(v) or ())[:-1] for v in (*reads, node.outputs[0])}
            constants = [self.batches.known[0].shape(v) for v in node.inputs if v is not None and v not in reads]
            return len(maps) == 1 and all(c is not None and set(c[:-1]) <= {1} for c in constants)
        if op == "LayerNormalization":
            return len(reads) == 1 and node.attributes.get_int("axis", -1) in (-1, last)
        if op == "MatMul":
            weight = self.batches.shape(node.inputs[1])
            return reads == [first] and weight is not None and len(weight) == 2
        if op in REDUCTIONS:
            return self._axes(node) in ([-1], [last]) and node.attributes.get_int("keepdims", 1) == 1
        if op == "Reshape":
            return (self.batches.shape(first) or ())[-1] == (self.batches.shape(node.outputs[0]) or ())[-1]
        return False

    def _axes(self, node: onnx_ir.Node) -> list[int]:
        if "axes" in node.attributes:
            return list(node.attributes.get_ints("axes", ()))
        found: Any = self.batches.known[0].data(node.inputs[1]) if len(node.inputs) > 1 else None
        return [] if found is None else [int(axis) for axis in found.reshape(-1)]

    def only_source(self, value: onnx_ir.Value) -> onnx_ir.Node | None:
        """The tokenwise node that makes `value` of one other map."""
        node = value.producer()
        reads = self.sources(node) if node is not None else None
        return node if reads is not None and len(reads) == 1 else None

    def last_cut(self, start: onnx_ir.Value) -> onnx_ir.Value:
        """The last sum of two maps to which all that `start` leads to comes down again, tokenwise all the way;
        `start` itself where there is none."""
        inside, nodes = {start}, []
        for node in _after(start):
            reads = self.sources(node) if any(value in inside for value in node.inputs) else None
            if reads is not None and all(value in inside for value in reads):
                inside.add(node.outputs[0])
                nodes.append(node)
        cut, done, open_values = start, set[Any](), {start}
        for node in nodes:
            done.add(node)
            open_values.add(node.outputs[0])
            open_values = {v for v in open_values if v.is_graph_output() or any(u not in done for u in users(v))}
            sums = node.op_type == "Add" and len(self.sources(node) or ()) == 2
            if sums and open_values == {node.outputs[0]} and not node.outputs[0].is_graph_output():
                cut = node.outputs[0]
        return cut


def _after(value: onnx_ir.Value) -> Iterator[onnx_ir.Node]:
    places = positions(value)
    producer = value.producer()
    assert producer is not None
    return (node for node, place in places.items() if place > places[producer])
