"""An fp32 graph in which the low precision of every node can be switched on and off, to measure what each one costs.

One graph and one session answer for every mixture: an input of booleans says which nodes round their inputs, weights
and results as `to_precision` or `to_quantized` would have them do. What is switched off computes in fp32; where two
meet, the rounding is that of the cast between them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from trtship.errors import SpecError
from trtship.graphs.operators import FP32_SLOTS, FP32_STATISTICS, MOVES
from trtship.graphs.storage import load_graph, save_graph
from trtship.passes.assign import Assignment, is_constant, is_float
from trtship.passes.constants import convert
from trtship.passes.precision import prepare
from trtship.passes.quantize import Quantize
from trtship.passes.quantize_places import WEIGHT_SLOTS, Scope, name_of
from trtship.passes.rewrite import Editor
from trtship.spec import Precision

if TYPE_CHECKING:
    import onnx_ir

SWITCHES = "trtship.switches"
"""Name of the added input, bool [N]."""


def switchable(
    source: Path,
    target: Path,
    precision: Precision,
    *,
    ranges: Mapping[str, float] | None = None,
    scope: Scope = "fused",
) -> tuple[str, ...]:
    """Write the fp32 graph at `source` to `target` with switches; returns the names of the nodes in their order.

    fp16 and bf16: the nodes that `to_precision` makes low and that do more than move values. fp8 and int8: the
    products that `to_quantized` with `ranges` and `scope` quantizes; what is between them is left in fp32.

    Raises GraphError as the two do, SpecError for a precision that has nothing to switch.
    """
    if precision.graph_dtype == "float32":
        raise SpecError(f"{precision.value} has no nodes to switch", why="all compute alike", do="use fp16 or bf16")
    model = load_graph(source)
    writer = _Quantized(model, precision, ranges or {}, scope) if precision.quantized else _Rounded(model, precision)
    save_graph(model, target)
    return writer.names


class _Writer:
    """Adds the input, and selections by it."""

    def __init__(self, model: onnx_ir.Model) -> None:
        self.graph, self.editor = model.graph, Editor(model, "switches")
        self.flags: dict[onnx_ir.Node, onnx_ir.Value] = {}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name_of(node) for node in self.flags)

    def add_input(self, nodes: list[onnx_ir.Node]) -> None:
        import numpy as np
        import onnx_ir as ir

        if not nodes:
            raise SpecError("the graph has nothing to switch", why="no node of it is in a low precision", do="use fp32")
        switches = ir.Value(name=SWITCHES, shape=ir.Shape([len(nodes)]), type=ir.TensorType(ir.DataType.BOOL))
        self.graph.inputs.append(switches)
        for index, node in enumerate(nodes):
            place = self.editor.constant(np.array(index, np.int64), f"{SWITCHES}/{index}")
            self.flags[node] = self.editor.node("Gather", [switches, place], before=node, axis=0)

    def select(
        self, node: onnx_ir.Node, low: onnx_ir.Value, full: onnx_ir.Value, *, before: onnx_ir.Node
    ) -> onnx_ir.Value:
        value = self.editor.node("Where", [self.flags[node], low, full], before=before)
        value.type, value.shape = full.type, full.shape
        return value


class _Rounded(_Writer):
    def __init__(self, model: onnx_ir.Model, precision: Precision) -> None:
        import onnx_ir as ir

        self._low = ir.DataType[precision.graph_dtype.upper()]
        prepare(model, self._low)
        super().__init__(model)
        full = Assignment(model, self._low).full
        nodes = [
            node
            for node in model.graph
            if node not in full and node.op_type not in MOVES | {"Cast"} and any(map(is_float, node.outputs))
        ]
        self.add_input(nodes)
        self._rounded: dict[onnx_ir.Value, onnx_ir.Value] = {}
        for node in nodes:
            self._switch(node)

    def _switch(self, node: onnx_ir.Node) -> None:
        for slot, value in enumerate(node.inputs):
            if value is not None and is_float(value) and (node.op_type, slot) not in FP32_SLOTS:
                low = self._round(value, node)
                node.replace_input_with(slot, self.select(node, low, value, before=node))
        outputs = node.outputs[:1] if node.op_type in FP32_STATISTICS else node.outputs
        for value in outputs:
            if is_float(value):
                self._switch_output(node, value)

    def _round(self, value: onnx_ir.Value, before: onnx_ir.Node) -> onnx_ir.Value:
        if value not in self._rounded:
            if is_constant(value) and value.const_value is not None:
                numbers = convert(value.const_value, self._low).numbers.astype("float32")
                self._rounded[value] = self.editor.constant(numbers, f"{value.name}/rounded")
            else:
                self._rounded[value] = self._casts(value, before)
        return self._rounded[value]

    def _casts(self, value: onnx_ir.Value, before: onnx_ir.Node) -> onnx_ir.Value:
        """There and back, ahead of a node."""
        import onnx_ir as ir

        result = value
        for kind in (self._low, ir.DataType.FLOAT):
            result = self.editor.node("Cast", [result], before=before, to=int(kind))
            result.type, result.shape = ir.TensorType(kind), value.shape
        return result

    def _switch_output(self, node: onnx_ir.Node, value: onnx_ir.Value) -> None:
        import onnx_ir as ir

        users = [(use.node, use.idx) for use in value.uses()]
        mark = ir.node("Identity", [value])  # a place behind `node`, gone again below
        self.graph.insert_after(node, mark)
        chosen = self.select(node, self._casts(value, mark), value, before=mark)
        self.graph.remove(mark, safe=True)
        for user, slot in users:
            user.replace_input_with(slot, chosen)
        if value.is_graph_output():
            name = value.name
            for index, output in enumerate(self.graph.outputs):
                if output is value:
                    self.graph.outputs[index] = chosen
            value.name, chosen.name = f"{name}/exact", name


class _Quantized(_Writer):
    def __init__(self, model: onnx_ir.Model, precision: Precision, ranges: Mapping[str, float], scope: Scope) -> None:
        full = {
            name_of(node): node.inputs[slot]
            for node in model.graph
            if (slot := WEIGHT_SLOTS.get(node.op_type)) is not None
        }
        weights = {
            name: value.const_value.numpy()
            for name, value in full.items()
            if value is not None and value.const_value is not None
        }
        report = Quantize(precision, ranges, scope=scope)(model).report
        self._has_activations = scope != "weights"
        super().__init__(model)
        wanted = set(report.quantized)
        nodes = [node for node in model.graph if node.op_type in WEIGHT_SLOTS and name_of(node) in wanted]
        self.add_input(nodes)
        for node in nodes:
            self._switch(node, weights[name_of(node)])

    def _switch(self, node: onnx_ir.Node, weight: object) -> None:
        slot = WEIGHT_SLOTS[node.op_type]
        stored = node.inputs[slot]
        assert stored is not None
        exact = self.editor.constant(weight, f"{name_of(node)}/weight")
        node.replace_input_with(slot, self.select(node, stored, exact, before=node))
        if self._has_activations:
            low = node.inputs[0]
            assert low is not None
            node.replace_input_with(0, self.select(node, low, _before_q(low), before=node))


def _before_q(value: onnx_ir.Value) -> onnx_ir.Value:
    """What a Q/DQ pair reads, given what it makes."""
    for _ in range(2):
        maker = value.producer()
        assert maker is not None
        assert maker.inputs[0] is not None
        value = maker.inputs[0]
    return value
