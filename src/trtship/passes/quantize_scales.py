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


def scale_of(amax: float, precision: Precision) -> float:
    """The scale at which `amax`, a magnitude, is the largest number stored; an fp16 number, rounded upwards.

    A tensor of zeros gets the smallest scale. Raises SpecError for a negative `amax`, or one that is not finite.
    """
    if not math.isfinite(amax) or amax < 0:
        raise SpecError(f"a range of {amax} cannot be quantized", why="it must be finite", do="calibrate again")
    return float(_scales(amax, precision))


def _scales(amax: Numbers, precision: Precision) -> Numbers:
    """float32, element by element."""
    import numpy as np

    wanted = np.maximum(np.asarray(amax, np.float64) / LARGEST[precision], SMALLEST_SCALE)
    near = wanted.astype(np.float16)
    scales = np.where(near.astype(np.float64) < wanted, np.nextafter(near, np.float16(np.inf)), near)
    return scales.astype(np.float32)


def quantized_weight(weight: Numbers, axis: int, precision: Precision) -> tuple[Numbers, Numbers]:
    """`weight`, float32, in int8 or float8_e4m3fn, and its scales, float32 [channels], one along `axis`.

    Rounded to nearest, ties to even, as QuantizeLinear does.
    """
    import ml_dtypes
    import numpy as np

    others = tuple(i for i in range(weight.ndim) if i != axis)
    scales = _scales(np.abs(weight).max(axis=others), precision)
    shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
    scaled = weight / scales.reshape(shape)
    if precision is Precision.INT8:
        return np.clip(np.rint(scaled), -LARGEST[precision], LARGEST[precision]).astype(np.int8), scales
    return scaled.astype(ml_dtypes.float8_e4m3fn), scales
