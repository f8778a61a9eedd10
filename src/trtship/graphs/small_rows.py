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

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from trtship.graphs.rounding import CEILING, QUANTILE
from trtship.measure import HUGE


class RowNoise(msgspec.Struct, frozen=True):
    """What noise makes of one row, by floating output: the `deviations` of an element and the `sizes` of one, both the
    root of the mean square over the row. NaN for a row of NaN or Inf."""

    deviations: dict[str, float] = {}
    sizes: dict[str, float] = {}

    def scaled(self, factor: float) -> RowNoise:
        """Return this with `factor` times the deviations."""
        return RowNoise({name: factor * value for name, value in self.deviations.items()}, self.sizes)


class Judged(msgspec.Struct, frozen=True):
    """The noise of one row: `relative` to its size, or, of outputs that are small there, to their usual one. `small`
    has the deviation of an element of those, by output."""

    relative: float
    small: dict[str, float]


def row_sizes(outputs: Mapping[str, Any], *, whole: bool = False) -> list[dict[str, float]]:
    """Return the size of an element of each floating output, for each row; `whole` takes all rows for one."""
    found: list[dict[str, float]] = []
    for name, output in outputs.items():
        array = np.asarray(output)
        if array.dtype.kind != "f":
            continue
        rows = as_rows(array, whole=whole)
        with np.errstate(invalid="ignore"):
            sizes = np.sqrt(np.square(rows).sum(1) / max(1, rows.shape[1]))
        found += [{} for _ in range(len(sizes) - len(found))]
        for row, size in zip(found, sizes, strict=False):
            row[name] = float(size)
    return found


def as_rows(array: Any, *, whole: bool = False) -> Any:
    """Return [rows, elements] in float64; one row of a scalar, and with `whole`."""
    one = whole or not array.ndim
    return array.astype(np.float64).reshape(1 if one else len(array), -1 if array.size else 0)


def judge(row: RowNoise, original: Mapping[str, float], usual: Mapping[str, float]) -> Judged:
    """Tell small outputs from those that have their own size.

    Args:
        row: The noise of the row.
        original: The size of an element, by output, in what the original says of this row. The noisy runs' own size has
            the amplified noise in it.
        usual: That of all reference rows. An output that is always 0 has none: there, noise is all that it may be.
    """
    relative, small = [0.0], {}
    for name, deviation in row.deviations.items():
        size, typical = row.sizes[name], usual.get(name, 0.0)
        if deviation == 0:
            continue
        noise = QUANTILE * deviation
        is_little = noise > CEILING * min(size, original.get(name, size))
        if is_little and (noise <= CEILING * typical or typical == 0):
            small[name] = deviation
            relative.append(deviation / typical if typical else 0.0)
        else:
            relative.append(min(deviation / size, HUGE) if size else HUGE)
    return Judged(float(np.max(relative)), small)


def judge_all(
    rows: Sequence[RowNoise], originals: Sequence[Mapping[str, float]], usual: Mapping[str, float]
) -> list[Judged]:
    """Judge each row; an output that has fewer rows has no size on the others."""
    return [judge(row, originals[i] if i < len(originals) else {}, usual) for i, row in enumerate(rows)]


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
