"""A graph at two batch sizes: what a dimension has to do with the batch shows when the batch changes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trtship.passes.known import Known

if TYPE_CHECKING:
    import onnx_ir

TWO, THREE = 2, 3
"""Two batch sizes that tell a batch dimension from a size that broadcasts."""


class Batches:
    """`letter` is the batch dimension's name and None where it is fixed, to `sizes[0]` then; `known[i]` is the graph at
    `sizes[i]`. The batch is the first dimension of the graph's first input. Other dynamic dimensions stay unknown."""

    def __init__(self, model: onnx_ir.Model) -> None:
        inputs = [value for value in model.graph.inputs if not value.is_initializer()]
        shape = inputs[0].shape if inputs else None
        first = shape[0] if shape is not None and len(shape) else 1
        self.letter = None if isinstance(first, int) else str(first.value)
        self.sizes: tuple[int, ...] = (first,) if isinstance(first, int) else (TWO, THREE)
        self.known = tuple(Known(model, {} if self.letter is None else {self.letter: n}) for n in self.sizes)

    def shape(self, value: onnx_ir.Value | None) -> tuple[int, ...] | None:
        """At `sizes[0]`."""
        return self.known[0].shape(value)

    def per_image(self, value: onnx_ir.Value | None) -> tuple[int, ...] | None:
        """The shape with its first dimension divided by the batch; None where it is unknown, the first dimension is no
        multiple of the batch, or another one changes with the batch."""
        found = set()
        for size, known in zip(self.sizes, self.known, strict=True):
            shape = known.shape(value)
            if not shape or shape[0] % size:
                return None
            found.add((shape[0] // size, *shape[1:]))
        return found.pop() if len(found) == 1 else None

    def data(self, value: onnx_ir.Value | None) -> tuple[Any, ...] | None:
        """The tensor's elements at each of `sizes`; None where they depend on data."""
        arrays = tuple(known.data(value) for known in self.known)
        return None if any(array is None for array in arrays) else arrays

    def leading(self, count: int) -> int:
        """First dimension of a Reshape's target: -1 where the batch is dynamic, else the batch times `count`."""
        return -1 if self.letter is not None else self.sizes[0] * count
