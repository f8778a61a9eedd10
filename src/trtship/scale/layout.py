"""How a bundle's tensors look to Triton: which axis is its batch, and the sizes of the others.

Triton adds the batch's axis itself where `max_batch_size` is above 0: then every tensor begins with it, and `dims` are
the sizes behind it. Elsewhere `dims` are all sizes, and requests are never put together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from trtship.errors import SpecError
from trtship.scale.textproto import Word
from trtship.spec import ShapeRange, TensorSpec, batch_letter, batch_range

TYPES = {
    "float32": "TYPE_FP32", "float16": "TYPE_FP16", "bfloat16": "TYPE_BF16", "float64": "TYPE_FP64",
    "int64": "TYPE_INT64", "int32": "TYPE_INT32", "uint8": "TYPE_UINT8", "int8": "TYPE_INT8", "bool": "TYPE_BOOL",
}  # fmt: skip
"""Values of the enumeration DataType in model_config.proto."""
OPEN = -1


class Layout(msgspec.Struct, frozen=True):
    """The tensors of one model. `batch` is its batches, None where Triton must not put requests together; `ranges` are
    those of all letters."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    ranges: Mapping[str, ShapeRange]
    batch: ShapeRange | None

    @staticmethod
    def of(inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], ranges: Mapping[str, ShapeRange]) -> Layout:
        """Requests can be put together where every tensor begins with the batch's letter and has it nowhere else, and
        batches of more than one size are taken (or of one row alone). Raises SpecError for a tensor that Triton cannot
        have."""
        letter = batch_letter(inputs)
        every = (*inputs, *outputs)
        batch = batch_range(inputs, ranges) if letter and all(_begins_with(letter, spec) for spec in every) else None
        if batch is not None and batch.min == batch.max > 1:
            batch = None
        for spec in every:
            if not spec.shape:
                raise SpecError(
                    f"Triton cannot serve the tensor {spec}",
                    why="it has no dimensions, and Triton's tensors have at least one",
                    do="give it one in the model, and deploy again",
                )
        return Layout(inputs, outputs, ranges, batch)

    @property
    def max_batch_size(self) -> int:
        return self.batch.max if self.batch is not None else 0

    @property
    def has_open_sizes(self) -> bool:
        """Whether an input has a size, beside the batch, that may vary."""
        return any(OPEN in self.dims(spec) for spec in self.inputs)

    def dims(self, spec: TensorSpec) -> tuple[int, ...]:
        """Those of `spec` in the config; OPEN for a size that may vary.

        An input's letter that stands for one size alone is that size. An output's is not: Triton wants to find what the
        graph says of it.
        """
        fixed = {} if spec in self.outputs else {c: r.max for c, r in self.ranges.items() if r.min == r.max}
        return tuple(d if isinstance(d, int) else fixed.get(d, OPEN) for d in self._own(spec))

    def usual(self, spec: TensorSpec) -> tuple[int, ...]:
        """`dims`, with each size that may vary at its opt."""
        opt = {letter: found.opt for letter, found in self.ranges.items()}
        return tuple(opt[d] if isinstance(d, str) else d for d in self._own(spec))

    def _own(self, spec: TensorSpec) -> Sequence[int | str]:
        return spec.shape if self.batch is None else spec.shape[1:]


def type_of(spec: TensorSpec) -> Word:
    """Its DataType. Raises SpecError for one that Triton has not."""
    if spec.dtype not in TYPES:
        raise SpecError(f"Triton cannot serve the tensor {spec}", why=f"it has no type {spec.dtype}")
    return Word(TYPES[spec.dtype])


def _begins_with(letter: str, spec: TensorSpec) -> bool:
    return spec.shape[:1] == (letter,) and letter not in spec.shape[1:]
