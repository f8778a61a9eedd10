"""How far one output is from another: the figures that every check in trtship reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trtship.input_values import random_inputs as random_inputs
from trtship.spec import Record

HUGE = float(np.finfo(np.float64).max)
"""Stands for a relative error without end: JSON has no infinity."""


class Measure(Record, frozen=True):
    """One output against its reference, at one set of sizes; None where a figure is not defined.

    `rel_l2` is the worst row's ||a - r|| / ||r||, `cosine` the worst row's a.r / (||a|| ||r||), `max_abs` the largest
    |a - r|, `top1_agreement` the share of rows with the same argmax (outputs of shape [B, C], C > 1, only).
    `finite` is False when there is a NaN or Inf in the output, or in its reference, against which nothing can then
    be said; the other figures are None.
    """

    sizes: dict[str, int]
    output: str
    finite: bool
    rel_l2: float | None = None
    cosine: float | None = None
    max_abs: float | None = None
    top1_agreement: float | None = None


def measure(reference: Any, actual: Any, *, output: str, sizes: Mapping[str, int]) -> Measure:
    """Compare two arrays [B, ...] row by row, in float64; of different shapes, rel_l2 is the largest float64."""
    r, a = (np.asarray(v).astype(np.float64) for v in (reference, actual))
    if r.shape != a.shape:
        return Measure(sizes=dict(sizes), output=output, finite=True, rel_l2=HUGE)
    if not (np.isfinite(a).all() and np.isfinite(r).all()):
        return Measure(sizes=dict(sizes), output=output, finite=False)
    if r.size == 0:
        return Measure(sizes=dict(sizes), output=output, finite=True, rel_l2=0.0, max_abs=0.0)
    r2, a2 = (v.reshape(v.shape[0] if v.ndim else 1, -1) for v in (r, a))
    difference, size_r, size_a = (np.linalg.norm(v, axis=1) for v in (a2 - r2, r2, a2))
    off = np.where(difference == 0, 0.0, HUGE)
    with np.errstate(over="ignore"):
        relative = np.minimum(np.divide(difference, size_r, out=off, where=size_r > 0), HUGE)
    both = size_r * size_a
    cosine = np.where(both > 0, (r2 * a2).sum(axis=1) / np.where(both > 0, both, 1), (size_r == size_a).astype(float))
    has_classes = r.ndim == 2 and r.shape[1] > 1
    return Measure(
        sizes=dict(sizes),
        output=output,
        finite=True,
        rel_l2=float(relative.max()),
        cosine=float(cosine.min()),
        max_abs=float(np.abs(a2 - r2).max()),
        top1_agreement=float((r2.argmax(1) == a2.argmax(1)).mean()) if has_classes else None,
    )


def worst(measures: Sequence[Measure]) -> float | None:
    """The largest rel_l2; None when an output was not finite, or nothing was measured."""
    if not measures or not all(m.finite for m in measures):
        return None
    return max(m.rel_l2 for m in measures if m.rel_l2 is not None)
