"""Which sizes of the dynamic dimensions are tried: at the ends of each range, beside them, and an odd one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import prod
from typing import Any

from trtship.measure import Measure
from trtship.spec import ShapeRange

Sizes = Mapping[str, int]
"""The size of each dynamic dimension, by its letter."""
Allowed = Callable[[Sizes], bool]
"""Whether the model takes these sizes: its own rules on them, such as `H % 32 == 0`."""

MOST_LISTED = 8
"""Sets of sizes that a text lists one by one; of more it tells the sizes of each letter."""


def any_size(sizes: Sizes) -> bool:
    """Allow all sizes: the rule of a model that has none."""
    return True


def places_of(sizes: ShapeRange) -> dict[str, int]:
    """Return the sizes to try of one dimension by the name of their place, the most telling first.

    MAX has the largest sums, MIN the smallest; MAX-1, MIN+1 and the odd size find what holds for the ends or for even
    sizes alone. A place that the range does not have is the nearest that it has.
    """
    middle = (sizes.min + sizes.max) // 2
    odd = middle if middle % 2 else middle + 1 if middle < sizes.max else middle - 1
    inner = {"MIN+1": sizes.min + 1, "MAX-1": sizes.max - 1, "odd": odd}
    return {
        "MAX": sizes.max,
        "MIN": sizes.min,
        **{name: min(max(size, sizes.min), sizes.max) for name, size in inner.items()},
    }


def further_sizes(
    ranges: Mapping[str, ShapeRange], usual: Sizes, *, allowed: Allowed = any_size
) -> tuple[dict[str, int], ...]:
    """Return the sets of sizes to try beside `usual`: all letters together at each of the places, then each letter
    alone, the others as usual; each set once, the most telling first.

    Args:
        ranges: The range of each letter of `usual`, and perhaps of others.
        usual: The usual size of each letter, those of the batch's left out.
        allowed: Sets that it refuses are left out. Where it refuses a size beside an end, the next size that it allows
            takes its place.
    """
    if not usual:
        return ()
    places = {letter: _allowed_places(letter, ranges[letter], usual, allowed) for letter in usual}
    names = next(iter(places.values())).keys()
    plain = [{letter: places_of(ranges[letter])[name] for letter in usual} for name in names]
    nearest = [{letter: places[letter][name] for letter in usual} for name in names]
    together = [one if allowed(one) else other for one, other in zip(plain, nearest, strict=True)]
    alone = [{**usual, letter: places[letter][name]} for name in names for letter in usual]
    found: dict[tuple[tuple[str, int], ...], dict[str, int]] = {}
    for sizes in (*together, *alone):
        if sizes != dict(usual) and allowed(sizes):
            found.setdefault(tuple(sorted(sizes.items())), sizes)
    return tuple(found.values())


def _allowed_places(letter: str, sizes: ShapeRange, usual: Sizes, allowed: Allowed) -> dict[str, int]:
    """Return `places_of`, each moved on, away from the end, to the first size that is allowed with the others usual."""
    found = {}
    for name, size in places_of(sizes).items():
        way = range(size, sizes.min - 1, -1) if name.startswith("MAX") else range(size, sizes.max + 1)
        found[name] = next((n for n in way if allowed({**usual, letter: n})), size)
    return found


def batches_at(
    sizes: Sizes,
    ranges: Mapping[str, ShapeRange],
    letter: str,
    *,
    row: int,
    most: int,
    allowed: Allowed = any_size,
) -> tuple[int, ...]:
    """Return the batches to run at `sizes` of the other letters, ascending: the least, an odd one and the largest, and
    the one at the same place as these sizes (MIN+1 with MIN+1).

    Args:
        sizes: The sizes of the other letters.
        ranges: The range of every letter.
        letter: The batch's.
        row: Elements of the inputs of one row.
        most: Elements of the inputs of one run. A batch of more is replaced by the largest that has not, but at least
            the range's least.
        allowed: As in `further_sizes`, here of the batch and the other letters together. Where it refuses the least or
            the largest, the nearest that it allows takes its place.
    """
    batch = ranges[letter]
    wanted = {batch.min, batch.max, *[n for n in batch.sizes_to_check if n % 2 and n > 1][:1]}
    own = {other: places_of(ranges[other]) for other in sizes}
    for name, size in places_of(batch).items():
        if all(own[other][name] == n for other, n in sizes.items()):
            wanted.add(size)
    largest = max(batch.min, min(batch.max, most // max(row, 1)))
    found = {min(n, largest) for n in wanted}
    fine = {n for n in found if allowed({**sizes, letter: n})}
    for way in (range(batch.min, largest + 1), range(largest, batch.min - 1, -1)):
        end = next((n for n in way if allowed({**sizes, letter: n})), None)
        fine |= set() if end is None else {end}
    return tuple(sorted(fine))


def elements(arrays: Mapping[str, Any]) -> int:
    """Return how many numbers arrays have together."""
    return sum(prod(array.shape) for array in arrays.values())


def in_words(sizes: Sizes, *, joint: str = ", ") -> str:
    """Return `B=4, H=512`, and `its one shape` where there is no dynamic size."""
    return joint.join(f"{letter}={size}" for letter, size in sizes.items()) or "its one shape"


def tried_in_words(measures: Iterable[Measure]) -> str:
    """Return the sizes at which something was measured: one by one where they are few, else those of each letter."""
    tried = sorted({tuple(m.sizes.items()) for m in measures})
    if len(tried) <= MOST_LISTED:
        return ", ".join(in_words(dict(sizes), joint=" ") for sizes in tried)
    letters = dict.fromkeys(letter for sizes in tried for letter, _ in sizes)
    each = [
        f"{letter} = {', '.join(map(str, sorted({dict(sizes)[letter] for sizes in tried if letter in dict(sizes)})))}"
        for letter in letters
    ]
    return f"{len(tried)} sets of sizes, of " + "; ".join(each)


def left_out_in_words(untried: Sequence[tuple[Sizes, str]]) -> str:
    """Return which sizes were not tried and why; empty where all were."""
    by_reason: dict[str, list[str]] = {}
    for sizes, reason in untried:
        by_reason.setdefault(reason, []).append(in_words(sizes, joint=" "))
    parts = []
    for reason, all_sizes in by_reason.items():
        shown = ", ".join(all_sizes[:MOST_LISTED])
        more = f" and {len(all_sizes) - MOST_LISTED} more" if len(all_sizes) > MOST_LISTED else ""
        parts.append(f"not tried at {shown}{more}: {reason}")
    return "; ".join(parts)
