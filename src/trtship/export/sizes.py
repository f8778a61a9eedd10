"""The sizes at which an exported graph is compared with its model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from math import prod

from trtship.spec import ShapeRange

Sizes = Mapping[str, int]
"""A size for each letter."""
Allowed = Callable[[Sizes], bool]
MOST_COUNTED = 5_000
"""Sets of sizes that are looked at one by one; of more, some."""
NEAR = 8
"""How far around a known size all sizes are looked at where there are too many."""
SPREAD = 16
"""Sizes over a letter's range at which a trace is made."""
MOST_UNKNOWN = 16
"""The largest size that is looked at of a batch without a range."""


def all_allowed(sizes: Sizes) -> bool:
    """Allow every size."""
    return True


def sizes_around(
    traced: Sizes, ranges: Mapping[str, ShapeRange], *, batch: str | None, allowed: Allowed = all_allowed
) -> tuple[dict[str, int], ...]:
    """Return a few sizes, for what is checked many times: the traced ones, then the letter `batch` at 1 and at one
    more, then each other letter at the ends of its range. Without letters, there is only the one set."""
    found = [dict(traced)]
    for letter, size in traced.items():
        others = (1, size + 1) if letter == batch else (ranges[letter].min, ranges[letter].max)
        found += [{**traced, letter: n} for n in dict.fromkeys(others) if n != size]
    return tuple(sizes for sizes in found if allowed(sizes))


def sizes_to_compare(
    traced: Sizes, ranges: Mapping[str, ShapeRange], *, batch: str | None, allowed: Allowed = all_allowed
) -> tuple[dict[str, int], ...]:
    """Return the sizes at which graph and model are compared: the traced ones, each letter alone, all letters together.

    A letter is checked at MIN, MAX, OPT, MIN + 1, MAX - 1 and odd sizes of its range; the batch also at 1 and at one
    more than the traced one, since its graph is to be dynamic. Without letters, there is only the one set.

    Args:
        traced: The sizes of the export.
        ranges: The sizes that the letters may take; the batch may lack one.
        batch: The letter of the batch, or None.
        allowed: Which sizes are to be checked at all.
    """
    found = [dict(traced)]
    columns = {letter: _checked(letter, traced[letter], ranges.get(letter), letter == batch) for letter in traced}
    for letter, sizes in columns.items():
        found += [{**traced, letter: size} for size in sizes]
    if len(columns) > 1:
        found += [{**traced, **{x: ends(ranges[x]) for x in ranges if x in traced}} for ends in _TOGETHER]
    once = {tuple(sizes.items()): sizes for sizes in found}
    return tuple(sizes for sizes in once.values() if allowed(sizes))


_TOGETHER: tuple[Callable[[ShapeRange], int], ...] = (
    lambda r: r.min,
    lambda r: r.max,
    lambda r: r.opt,
    lambda r: min(r.min + 1, r.max),
    lambda r: max(r.max - 1, r.min),
    lambda r: next((n for n in r.sizes_to_check if n % 2 and r.min + 1 < n < r.max - 1), r.opt),  # one between
)


def _checked(letter: str, traced: int, sizes: ShapeRange | None, is_batch: bool) -> list[int]:
    always = [1, traced + 1] if is_batch else []
    if sizes is None:
        return always
    ends = [sizes.min, sizes.max, sizes.opt, min(sizes.min + 1, sizes.max), max(sizes.max - 1, sizes.min)]
    return list(dict.fromkeys([*always, *ends, *sizes.sizes_to_check]))


def sizes_to_trace(traced: Sizes, ranges: Mapping[str, ShapeRange], *, batch: str | None) -> tuple[dict[str, int], ...]:
    """Return sizes at which a trace shows whether the model runs other operators there, the cheapest first."""
    found = [{**traced, batch: n} for n in (1, traced[batch] + 1, traced[batch] + 3)] if batch else []
    for letter in traced.keys() & ranges.keys() - {batch}:
        sizes = ranges[letter]
        step = max(1, (sizes.max - sizes.min) // SPREAD)
        near = {traced[letter] + n for n in (-3, -2, -1, 1, 2, 3)}
        found += [{**traced, letter: n} for n in sorted({*range(sizes.min, sizes.max + 1, step), sizes.max, *near})]
    once = {tuple(sizes.items()): sizes for sizes in found if dict(sizes) != dict(traced)}
    within = [s for s in once.values() if all(x == batch or x not in ranges or n in ranges[x] for x, n in s.items())]
    return tuple(sorted(within, key=lambda s: prod(s.values())))


def must_run(sizes: Sizes, traced: Sizes, ranges: Mapping[str, ShapeRange]) -> bool:
    """Return whether the model is promised to take `sizes`: each is MIN, OPT or MAX of its range, or the traced one."""
    return all(
        size == traced[letter]
        or (letter in ranges and size in (ranges[letter].min, ranges[letter].opt, ranges[letter].max))
        for letter, size in sizes.items()
    )


def corners(ranges: Mapping[str, ShapeRange], traced: Sizes) -> tuple[dict[str, int], ...]:
    """Return every set of MIN, OPT and MAX of the letters that have a range; the others are at their traced size."""
    letters = [letter for letter in traced if letter in ranges]
    ends = [dict.fromkeys((ranges[x].opt, ranges[x].min, ranges[x].max)) for x in letters]
    return tuple({**traced, **dict(zip(letters, sizes, strict=True))} for sizes in product(*ends))


def sizes_within(
    letters: frozenset[str], ranges: Mapping[str, ShapeRange], traced: Sizes, *, batch: str | None
) -> tuple[bool, Iterator[dict[str, int]]]:
    """Return the sizes that these letters may take together, and whether those are all of them.

    The other letters are at their traced sizes. Where there are too many, they are those near the traced ones and near
    the ends of the ranges, and some between.
    """
    columns: dict[str, Sequence[int]] = {letter: _column(ranges.get(letter)) for letter in sorted(letters)}
    every, count = True, 1
    for column in columns.values():
        count *= len(column)
    every = count <= MOST_COUNTED and all(letter in ranges for letter in letters)
    if count > MOST_COUNTED:
        columns = {letter: _some(column, traced[letter], len(columns)) for letter, column in columns.items()}
    names = list(columns)
    return every, ({**traced, **dict(zip(names, sizes, strict=True))} for sizes in product(*columns.values()))


def _column(sizes: ShapeRange | None) -> range:
    return range(sizes.min, sizes.max + 1) if sizes else range(1, MOST_UNKNOWN + 1)


def _some(column: Sequence[int], traced: int, letters: int) -> list[int]:
    most = int(MOST_COUNTED ** (1 / letters))
    step = max(1, len(column) // max(1, most - 4 * NEAR))
    near = {n for centre in (traced, column[0], column[-1]) for n in range(centre - NEAR, centre + NEAR + 1)}
    return sorted(n for n in {*column[::step], *near} if n in column)
