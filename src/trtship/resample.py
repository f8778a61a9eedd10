"""PyTorch's antialiased resize of 8-bit pictures, bit for bit, with numpy.

Pillow's resize rounds otherwise: it keeps more bits of each weight, and goes down before across where the picture gets
lower and wider (seen with 13.0), which moves pixels at hard edges by up to 30 levels. The arithmetic is that of
`aten/src/ATen/native/cpu/UpSampleKernel.cpp` in PyTorch (`_compute_indices_int16_weights_aa` and the uint8 loops that
use it).
"""

from __future__ import annotations

import numpy as np

REACH = {"bilinear": 1.0, "bicubic": 2.0, "lanczos": 3.0}
MOST_BITS = 22


def resize_as_torch(pixels: np.ndarray, height: int, width: int, interpolation: str) -> np.ndarray:
    """uint8 `[H, W, C]` scaled to `[height, width, C]`: across first, then down, each rounded to 8 bits.

    `interpolation` is a key of `REACH`.
    """
    if pixels.shape[1] != width:
        across = np.ascontiguousarray(pixels.transpose(1, 0, 2))
        pixels = np.ascontiguousarray(_along_rows(across, width, interpolation).transpose(1, 0, 2))
    return _along_rows(pixels, height, interpolation) if pixels.shape[0] != height else pixels


def _along_rows(pixels: np.ndarray, size: int, interpolation: str) -> np.ndarray:
    """Scale the first axis, by sums of `first[i] + k` weighted by 16-bit integers."""
    first, weights = _weights(pixels.shape[0], size, interpolation)
    bits = _bits_for(weights.max())
    whole = np.trunc(weights * (1 << bits) + np.where(weights < 0, -0.5, 0.5)).astype(np.int32)
    total = np.full((size, *pixels.shape[1:]), 1 << (bits - 1), dtype=np.int32)
    for k in range(whole.shape[1]):
        rows = np.minimum(first + k, pixels.shape[0] - 1)  # a weight past the end is zero
        total += whole[:, k, None, None] * pixels[rows]
    levels: np.ndarray = np.clip(total >> bits, 0, 255).astype(np.uint8)
    return levels


def _weights(old: int, new: int, interpolation: str) -> tuple[np.ndarray, np.ndarray]:
    """Where each of `new` sums starts, `[new]`, and its weights, `[new, taps]`, each row of sum 1."""
    scale = old / new
    stretch = max(scale, 1.0)
    support = REACH[interpolation] * stretch
    centers = scale * (np.arange(new) + 0.5)
    first = np.maximum((centers - support + 0.5).astype(np.int64), 0)
    count = np.minimum((centers + support + 0.5).astype(np.int64), old) - first
    taps = np.arange(count.max())
    weights = _filter((first[:, None] + taps - centers[:, None] + 0.5) / stretch, interpolation)
    weights[taps >= count[:, None]] = 0.0
    return first, weights / weights.sum(axis=1, keepdims=True)


def _filter(x: np.ndarray, interpolation: str) -> np.ndarray:
    """The triangle, the cubic of Keys (1981) with a = -1/2, or the sinc under the middle lobe of a wider one."""
    x = np.abs(x)
    if interpolation == "bilinear":
        return np.maximum(1.0 - x, 0.0)
    if interpolation == "lanczos":
        return np.where(x < 3.0, np.sinc(x) * np.sinc(x / 3.0), 0.0)
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = -0.5 * (((x - 5.0) * x + 8.0) * x - 4.0)
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def _bits_for(largest: float) -> int:
    """How many bits after the point leave the largest weight below 2^15."""
    bits = 0
    while bits < MOST_BITS and int(0.5 + largest * (1 << (bits + 1))) < 1 << 15:
        bits += 1
    return bits
