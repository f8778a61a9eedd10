"""Batch sizes that became constants while a model was traced, found and made dynamic again.

`int(x.shape[0] / n)` in a model's code is a Python number when an exporter sees it: the graph then reshapes to the
batch that it was traced with, and is wrong, often silently, at any other. The graph is followed node by node at the
traced batch, where it is right, and at one more, where shapes must grow in proportion:

* a Reshape keeps the order of the elements, so that its batch stands in one place of its target: -1 goes there;
* an Expand of something that has the batch already keeps it with a 1 in its place;
* a constant tiled for the traced batch (a mask, a class token) is tiled at run time, if it repeats with each image.

What else does not grow cannot be repaired, and is refused with the node and the line of the model that it came from.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from trtship.errors import GraphError
from trtship.passes.base import Interface, Pass, PassResult
from trtship.passes.known import Known
from trtship.passes.rewrite import SOURCE_KEY, Editor, in_words
from trtship.spec import Record, TensorSpec

if TYPE_CHECKING:
    import onnx_ir

COMBINING = frozenset({"Add", "Sub", "Mul", "Div", "Where", "Concat", "MatMul", "Max", "Min", "Pow", "Sum"})


class FrozenBatchReport(Record, frozen=True):
    """`repaired` names the nodes whose batch was frozen at `traced`; none for a graph that was right."""

    traced: int
    repaired: tuple[str, ...]


class FrozenBatch(Pass[FrozenBatchReport]):
    """For graphs whose first input has a dynamic batch, traced at `traced`. A batch that is fixed in the inputs as well
    is a choice and left alone, unless `letter` says what it is to be called: then they become dynamic, too."""

    name: ClassVar[str] = "frozen batch"

    def __init__(self, *, traced: int = 2, letter: str | None = None) -> None:
        self.traced, self.letter = traced, letter

    def expected(self, inputs_and_outputs: Interface) -> Interface:
        """Inputs, where a letter was given, and outputs of the traced batch get the batch's letter."""
        inputs, outputs = inputs_and_outputs
        if self.letter is not None:
            inputs = tuple(self._lettered(spec, self.letter) for spec in inputs)
        letter = inputs[0].shape[0] if inputs and inputs[0].shape else None
        if isinstance(letter, str):
            outputs = tuple(self._lettered(spec, letter) for spec in outputs)
        return inputs, outputs

    def _lettered(self, spec: TensorSpec, letter: str) -> TensorSpec:
        is_frozen = bool(spec.shape) and spec.shape[0] == self.traced
        shape = (letter, *spec.shape[1:]) if is_frozen else spec.shape
        return TensorSpec(name=spec.name, shape=shape, dtype=spec.dtype)

    def call(self, model: onnx_ir.Model) -> PassResult[FrozenBatchReport]:
        """Edits `model`. Raises GraphError for a batch that is frozen and cannot be repaired."""
        import onnx_ir as ir
        from onnx_ir.passes import common

        inputs = [value for value in model.graph.inputs if not value.is_initializer()]
        thawed: list[str] = []
        for value in inputs:
            if self.letter is not None and value.shape is not None and list(value.shape)[:1] == [self.traced]:
                value.shape = ir.Shape([self.letter, *list(value.shape)[1:]])
                thawed.append(f"the input {value.name}")
        shape = inputs[0].shape if inputs else None
        if shape is None or not len(shape) or isinstance(shape[0], int):
            return PassResult(model, False, FrozenBatchReport(traced=self.traced, repaired=()))
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        sweep = Sweep(model, str(shape[0].value), self.traced, Editor(model, self.name))
        for value in model.graph.outputs:
            sweep.check_output(value)
            if value.shape is not None and len(value.shape) and value.shape[0] == self.traced:
                value.shape = ir.Shape([shape[0], *list(value.shape)[1:]])
        repaired = (*thawed, *sweep.repaired)
        if repaired:
            for node in model.graph:
                for value in node.outputs:
                    value.shape = value.shape if value.is_graph_output() else None
            common.RemoveUnusedNodesPass()(model)
        return PassResult(model, bool(repaired), FrozenBatchReport(traced=self.traced, repaired=repaired))


class Sweep(Known):
    """The graph at one batch more than it was traced with, repaired on the way; `_then` is it as it was traced."""

    def __init__(self, model: onnx_ir.Model, letter: str, traced: int, editor: Editor) -> None:
        self._then = Known(model, {letter: traced})
        self._traced, self._now = traced, traced + 1
        self._input, self._editor = model.graph.inputs[0], editor
        self.repaired: tuple[str, ...] = ()
        super().__init__(model, {letter: traced + 1})

    def check_output(self, value: onnx_ir.Value) -> None:
        """Raises GraphError where an output has the traced batch and does not grow with the input's."""
        before, after = self._then.shape(value), self.shape(value)
        node = value.producer()
        if node is not None and before and before[0] == self._traced and (not after or after[0] != self._now):
            raise self._refusal(node, f"the output {value.name} has {self._traced} rows whatever the batch is")

    def _visit(self, node: onnx_ir.Node) -> None:
        super()._visit(node)
        if node.op_type == "Reshape":
            is_repaired = self._reshape(node)
        elif node.op_type == "Expand" and self._batch_axis(node.inputs[0]) is not None:
            is_repaired = self._expand(node)
        else:
            is_repaired = node.op_type in COMBINING and self._combine(node)
        if is_repaired:
            super()._visit(node)
            self.repaired += (in_words(node),)
        lost = [value for value in node.outputs if self.shape(value) is None and self._then.shape(value) is not None]
        if lost:
            raise self._refusal(node, f"at batch {self._now} its inputs do not fit each other")

    def _batch_axis(self, value: onnx_ir.Value | None) -> int | None:
        """Where the shape grew with the batch; None where nothing did. Raises GraphError where several sizes did."""
        before, after = self._then.shape(value), self.shape(value)
        if before is None or after is None or len(before) != len(after):
            return None
        grown = [axis for axis, (one, other) in enumerate(zip(before, after, strict=True)) if one != other]
        return grown[0] if len(grown) == 1 and self._grown(before[grown[0]]) == after[grown[0]] else None

    def _grown(self, size: int) -> int | None:
        return size // self._traced * self._now if size % self._traced == 0 else None

    def _reshape(self, node: onnx_ir.Node) -> bool:
        source, result = node.inputs[0], node.outputs[0]
        axis, before = self._batch_axis(source), self._then.shape(result)
        shape = self._then.shape(source)
        if axis is None or before is None or shape is None:
            return False
        ahead = math.prod(shape[:axis])
        new = self._batch_axis(result)
        if new is not None and ahead % math.prod(before[:new]) == 0:
            return False
        places = [i for i, size in enumerate(before) if math.prod(before[:i]) == ahead and self._grown(size)]
        if not places:
            raise self._refusal(node, f"it makes {before} of {shape}, where no size stands for the batch alone")
        target = np.array([-1 if i == places[0] else size for i, size in enumerate(before)], np.int64)
        self._replace_constant(node, 1, target)
        return True

    def _expand(self, node: onnx_ir.Node) -> bool:
        axis, target = self._batch_axis(node.inputs[0]), self.data(node.inputs[1])
        before, source = self._then.shape(node.outputs[0]), self.shape(node.inputs[0])
        if axis is None or target is None or before is None or source is None:
            return False
        place = axis + len(before) - len(source)
        wanted = [self._grown(size) if i == place else size for i, size in enumerate(before)]
        if self.shape(node.outputs[0]) == tuple(wanted):
            return False
        self._replace_constant(node, 1, np.array([1 if i == place else n for i, n in enumerate(before)], np.int64))
        return True

    def _combine(self, node: onnx_ir.Node) -> bool:
        """Tile again what was tiled for the traced batch; whether there was any."""
        is_concat = node.op_type == "Concat"
        values = [value for value in node.inputs if value is not None]
        growing = [(value, self._batch_axis(value)) for value in values]
        found = False
        for slot, value in enumerate(node.inputs):
            array = self.data(value)
            if value is None or array is None or self._batch_axis(value) is not None:
                continue
            for other, axis in growing:
                size = (self._then.shape(other) or ())[axis] if axis is not None else 0
                rank = len(self._then.shape(other) or ())
                place = axis if is_concat or axis is None else axis + array.ndim - rank
                if place is None or not 0 <= place < array.ndim or array.shape[place] != size or size <= 1:
                    continue
                self._tile(node, slot, array, place)
                found = True
                break
        return found

    def _tile(self, node: onnx_ir.Node, slot: int, array: Any, axis: int) -> None:
        period = array.shape[axis] // self._traced
        once = np.take(array, range(period), axis)
        if not np.array_equal(np.concatenate([once] * self._traced, axis), array):
            raise self._refusal(node, "a constant in it differs from image to image of the batch")
        ones = [np.ones(count, np.int64) for count in (axis, array.ndim - axis - 1)]
        batch = self._editor.node("Shape", [self._input], before=node, start=0, end=1)
        repeats = [self._constant(ones[0]), batch, self._constant(ones[1])]
        times = self._editor.node("Concat", repeats, before=node, axis=0)
        tiled = self._editor.node("Tile", [self._constant(once), times], before=node)
        for value in (batch, times, tiled):
            producer = value.producer()
            assert producer is not None
            super()._visit(producer)
        node.replace_input_with(slot, tiled)

    def _constant(self, array: Any) -> onnx_ir.Value:
        value = self._editor.constant(array, "batch")
        self._types[value] = self._onnx.helper.make_tensor_type_proto(int(value.dtype or 0), array.shape)
        return value

    def _replace_constant(self, node: onnx_ir.Node, slot: int, array: Any) -> None:
        node.replace_input_with(slot, self._constant(array))

    def _refusal(self, node: onnx_ir.Node, why: str) -> GraphError:
        line = source_line(node)
        return GraphError(
            f"the batch is frozen at {self._traced} in the node {in_words(node)}" + (f", from {line}" if line else ""),
            why=why,
            do="use -1, or x.shape[0] without int(), where the model computes with the batch size",
        )


def source_line(node: onnx_ir.Node) -> str:
    """`file.py:123` of the model's code that the node came from, as the dynamo exporter notes it; or nothing."""
    lines = re.findall(r'File "([^"]+)", line (\d+)', node.metadata_props.get(SOURCE_KEY, ""))
    return ":".join(lines[-1]) if lines else ""
