"""fp32 constants in a low precision: what fits, what has to be clipped, what vanishes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx_ir

Numbers = Any
"""A numpy array of any dtype, ml_dtypes' among them."""


@dataclass(frozen=True)
class Converted:
    """`numbers` in the new type; how many finite ones were `clipped` to its range, and how many became zero."""

    numbers: Numbers
    clipped: int
    underflowed: int


def convert(tensor: onnx_ir.TensorProtocol, low: onnx_ir.DataType) -> Converted:
    """Round to nearest, ties to even; finite numbers out of range become the largest one; inf and NaN stay."""
    import numpy as np

    numbers = tensor.numpy()
    largest = np.float32(_largest(low))
    beyond = np.isfinite(numbers) & (np.abs(numbers) > largest)
    clipped = int(np.count_nonzero(beyond))
    within = np.where(beyond, np.copysign(largest, numbers), numbers) if clipped else numbers
    rounded = within.astype(low.numpy())
    underflowed = int(np.count_nonzero(numbers) - np.count_nonzero(rounded))
    return Converted(rounded, clipped, underflowed)


def in_range(tensor: onnx_ir.TensorProtocol, low: onnx_ir.DataType) -> bool:
    """Whether no finite element is beyond the low type's largest number."""
    import numpy as np

    numbers = tensor.numpy()
    return not np.any(np.isfinite(numbers) & (np.abs(numbers) > _largest(low)))


def is_tiny(tensor: onnx_ir.TensorProtocol, low: onnx_ir.DataType) -> bool:
    """Whether it is one number, not 0, below the low type's normal range: an epsilon of 1e-12 would become 0."""
    numbers = tensor.numpy()
    return numbers.size == 1 and 0 < abs(float(numbers.flat[0])) < float(_limits(low).smallest_normal)


def _largest(low: onnx_ir.DataType) -> float:
    return float(_limits(low).max)


def _limits(low: onnx_ir.DataType) -> Any:
    """numpy's finfo, which knows bfloat16 too."""
    import ml_dtypes

    finfo: Any = ml_dtypes.finfo
    return finfo(low.numpy())
