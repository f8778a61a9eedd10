"""What a plan is run on: one set of input shapes, with all sizes in bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from trtship.spec import TensorSpec

BITS = {"float64": 64, "int64": 64, "float32": 32, "int32": 32, "float16": 16, "bfloat16": 16}
"""Bits of an element; 8 for all other dtypes."""


def nbytes(shape: Sequence[int], dtype: str) -> int:
    return math.prod(shape) * BITS.get(dtype, 8) // 8


class Piece:
    """Shapes that are run at once, in the order of the inputs; `shapes` by name. There is one object for each set of
    shapes of a session. `profile` is the plan's for them; `fixed` says that it takes no others. `bucket` is the next
    larger batch of the same profile in whose CUDA graph it may run, where it is not sure of one of its own; `is_bucket`
    says that others run in this one's.

    The shapes of the outputs are known once a context was asked (`learn`).
    """

    __slots__ = ("bucket", "fixed", "in_bytes", "is_bucket", "is_known", "out_bytes", "out_shapes", "profile", "shapes")

    def __init__(
        self, inputs: Sequence[TensorSpec], shapes: Sequence[tuple[int, ...]], *, profile: int, fixed: bool
    ) -> None:
        self.shapes = {spec.name: shape for spec, shape in zip(inputs, shapes, strict=True)}
        self.profile, self.fixed = profile, fixed
        self.bucket: Piece | None = None
        self.is_bucket = False
        self.in_bytes = tuple(nbytes(shape, spec.dtype) for spec, shape in zip(inputs, shapes, strict=True))
        self.out_shapes: tuple[tuple[int, ...], ...] = ()
        self.out_bytes: tuple[int, ...] = ()
        self.is_known = False

    def learn(self, outputs: Sequence[TensorSpec], shapes: Mapping[str, tuple[int, ...]]) -> None:
        """What TensorRT says of the outputs at these shapes."""
        if not self.is_known:
            self.out_shapes = tuple(shapes[spec.name] for spec in outputs)
            self.out_bytes = tuple(nbytes(shapes[spec.name], spec.dtype) for spec in outputs)
            self.is_known = True
