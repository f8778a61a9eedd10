"""Rows whose output is next to nothing: they are held to an absolute bound, the noise that was measured there.

A relative error says nothing of a row that is made of what cancels: the contrast of a flat picture is 0, or 1e-16,
and any rounding error is larger. An error there is a Gaussian vector as anywhere else, whose norm exceeds
`QUANTILE` times its measured deviation d once in a million (`trtship.verify.bounds`); of this, only d itself is
measured, and not picked.

A row is small where QUANTILE d is above `CEILING` of its own size, and is at most `CEILING` of the output's usual
size: the root of the mean square of what the original says of all reference rows. Where it is more, the network is
not to be run in that precision, and nothing is allowed for. A row that is small and has little noise (1e-3, right to
1e-6) is none of these: it stays held to its own size.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec
import numpy as np

from trtship.graphs.noise import RowNoise
from trtship.graphs.rounding import CEILING, QUANTILE
from trtship.measure import HUGE


class Judged(msgspec.Struct, frozen=True):
    """The noise of one row: `relative` to its size, or, of outputs that are small there, to their usual one. `small`
    has the deviation of an element of those, by output."""

    relative: float
    small: dict[str, float]


def usual_sizes(outputs: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return the root of the mean square of each floating output."""
    return {
        name: float(np.sqrt(np.square(np.asarray(array, np.float64)).mean())) if array.size else 0.0
        for name, array in outputs.items()
        if array.dtype.kind == "f"
    }


def judge(row: RowNoise, usual: Mapping[str, float]) -> Judged:
    """Tell small outputs from those that have their own size. An output that is always 0 has no usual size: there,
    noise is all that it may be."""
    relative, small = [0.0], {}
    for name, deviation in row.deviations.items():
        size, typical = row.sizes[name], usual.get(name, 0.0)
        if deviation == 0:
            continue
        noise = QUANTILE * deviation
        if noise > CEILING * size and (noise <= CEILING * typical or typical == 0):
            small[name] = deviation
            relative.append(deviation / typical if typical else 0.0)
        else:
            relative.append(min(deviation / size, HUGE) if size else HUGE)
    return Judged(float(np.max(relative)), small)


def worst_of(deviations: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Return the largest deviation of each output."""
    found: dict[str, float] = {}
    for one in deviations:
        for name, deviation in one.items():
            found[name] = max(deviation, found.get(name, 0.0))
    return found


def floors(small: Mapping[str, float], own: float) -> dict[str, float]:
    """Return the size that a small row counts as having, by output, so that the bound `own` allows for its noise."""
    return {name: QUANTILE * deviation / own for name, deviation in small.items() if own}
