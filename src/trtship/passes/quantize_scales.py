"""Scales, and weights in 8 bits."""

from __future__ import annotations

import math
from typing import Any

from trtship.errors import SpecError
from trtship.spec import Precision

Numbers = Any
"""A numpy array."""

LARGEST = {Precision.INT8: 127.0, Precision.FP8: 448.0}
"""The largest magnitude stored: int8 without -128, so that both signs reach as far; E4M3 (Micikevicius et al., "FP8
Formats for Deep Learning", 2022, table 1)."""
SMALLEST_SCALE = 2.0**-14
"""The smallest normal fp16 number: the scales of a strongly typed graph are fp16, as the tensors beside them."""
LARGEST_SCALE = 65504.0
SMALLEST_SHARE = 2.0**-10


def scale_of(amax: float, precision: Precision) -> float:
    """The scale at which the magnitude `amax` is the largest number stored; an fp16 number, rounded upwards.

    A tensor of zeros gets the smallest scale. Raises SpecError for a negative `amax`, one that is not finite, and one
    whose scale fp16 does not hold.
    """
    if not 0 <= amax <= LARGEST_SCALE * LARGEST[precision]:  # nor is NaN
        why = f"it takes 0 to {LARGEST_SCALE * LARGEST[precision]:.3g}"
        raise SpecError(f"a range of {amax} cannot be quantized", why=why, do="calibrate again")
    return float(_scales(amax, precision))


def weight_scales(weight: Numbers, axis: int | None, precision: Precision) -> Numbers:
    """float32, one for each channel along `axis`; a single one, of no dimensions, for None."""
    import numpy as np

    others = tuple(i for i in range(weight.ndim) if i != axis) if axis is not None else None
    return _scales(np.abs(weight).max(axis=others, initial=0.0), precision)


def split_scales(scales: Numbers) -> tuple[Numbers, Numbers]:
    """`whole` and `shares`, float32: the largest of `scales` (fp16 numbers), and what each is of it, an fp16 number
    from 2^-10 to 1, rounded upwards, so that `whole * shares` are scales as good, or coarser where a channel's weights
    are a thousandth of another's."""
    import numpy as np

    whole = scales.max()
    return whole, _upwards(np.maximum(scales.astype(np.float64) / whole, SMALLEST_SHARE)).astype(np.float32)


def quantized_weight(weight: Numbers, scales: Numbers, axis: int | None, precision: Precision) -> Numbers:
    """`weight`, float32, over `scales`, as int8 or float8_e4m3fn: rounded to nearest, ties to even, as QuantizeLinear
    does."""
    import ml_dtypes
    import numpy as np

    largest = LARGEST[precision]
    scaled = np.clip(weight / _broadcast(scales, axis, weight.ndim), -largest, largest)
    return np.rint(scaled).astype(np.int8) if precision is Precision.INT8 else scaled.astype(ml_dtypes.float8_e4m3fn)


def relative_error(weight: Numbers, stored: Numbers, scales: Numbers, axis: int | None) -> float:
    """Of the weights that `stored` stands for: ||difference|| / ||weight||; 0 for weights of zeros."""
    import numpy as np

    kept = stored.astype(np.float64) * _broadcast(scales.astype(np.float64), axis, weight.ndim)
    size = float(np.linalg.norm(weight.astype(np.float64)))
    return float(np.linalg.norm(weight - kept)) / size if math.isfinite(size) and size > 0 else 0.0


def _broadcast(scales: Numbers, axis: int | None, dimensions: int) -> Numbers:
    return scales if axis is None else scales.reshape([-1 if i == axis else 1 for i in range(dimensions)])


def _scales(amax: Numbers, precision: Precision) -> Numbers:
    """float32, element by element."""
    import numpy as np

    wanted = np.maximum(np.asarray(amax, np.float64) / LARGEST[precision], SMALLEST_SCALE)
    return _upwards(wanted).astype(np.float32)


def _upwards(wanted: Numbers) -> Numbers:
    """The next fp16 numbers that are no smaller."""
    import numpy as np

    near = wanted.astype(np.float16)
    return np.where(near.astype(np.float64) < wanted, np.nextafter(near, np.float16(np.inf)), near)
