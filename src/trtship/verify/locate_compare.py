"""One tensor of the suspect against the reference's: how far it is off, and how far rounding may take it."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from trtship.measure import HUGE
from trtship.spec import Record

State = Literal["same", "off", "not finite", "does not run", "heals"]


class Deviation(Record, frozen=True):
    """A tensor that was looked at.

    `error` is the worst relative L2, over the rows (first dimension) and over the lines (last dimension), whichever is
    further beyond its `floor`. `state` is `heals` where keeping the tensor made the suspect's outputs right.
    """

    tensor: str
    node: str
    operator: str
    shape: tuple[int, ...]
    state: State
    error: float | None = None
    floor: float | None = None


def errors(reference: Any, actual: Any) -> tuple[float, float] | None:
    """The worst row's and the worst line's relative L2; None where `actual` is not finite and `reference` is.

    An infinity that both have in the same place, as masks do, counts as equal; of an element that is NaN in the
    reference nothing can be said, and it is left out.
    """
    r, a = (np.asarray(one).astype(np.float64) for one in (reference, actual))
    if r.shape != a.shape:
        return HUGE, HUGE
    left_out = np.isnan(r) | (np.isinf(r) & (r == a))
    r, a = np.where(left_out, 0, r), np.where(left_out, 0, a)
    if not np.isfinite(a).all():
        return None
    if not np.isfinite(r).all():
        return HUGE, HUGE
    rows = r.shape[0] if r.ndim else 1
    line = r.shape[-1] if r.ndim else 1
    return _worst(r.reshape(rows, -1), a.reshape(rows, -1)), _worst(r.reshape(-1, line), a.reshape(-1, line))


def _worst(reference: Any, actual: Any) -> float:
    if not reference.size:
        return 0.0
    off, size = (np.linalg.norm(one, axis=1) for one in (actual - reference, reference))
    with np.errstate(over="ignore"):
        relative = np.divide(off, size, out=np.where(off == 0, 0.0, HUGE), where=size > 0)
    return float(min(relative.max(), HUGE))


def gains(reference: Any, rounded: Any, explained: float) -> tuple[float, float]:
    """What the network itself made of its roundings, for rows and for lines: at least 1."""
    found = errors(reference, rounded)
    if found is None or not explained:
        return 1.0, 1.0
    return max(1.0, found[0] / explained), max(1.0, found[1] / explained)
