"""The sizes of batches that others are rounded up to, where there are more sizes than CUDA graphs."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from itertools import islice

from trtship.spec import ShapeRange

COARSEST = 4
"""A batch is rounded up by a quarter of itself at most."""
SHARE = 3 / 4
"""Of the graphs, at most, are for buckets; the others are for sizes that come often."""


def buckets(limits: ShapeRange, graphs: int, *, beside: int = 0) -> tuple[int, ...]:
    """Sizes from the smallest batch to the largest: every batch is one of them, or rounded up to the next, by one nth
    of itself at most, with the largest n that so many graphs allow. None where each size can have a graph, or where n
    would be less than four. `beside` are sizes that keep a graph of their own."""
    if limits.max - limits.min < graphs:
        return ()
    most = int(SHARE * graphs) - beside

    def count(part: int) -> int:
        return len(_rounded_by(part, limits, most + 1))

    parts = range(COARSEST, limits.max + 1)
    finest = bisect_right(parts, most, key=count)  # a smaller part takes more buckets
    return tuple(_rounded_by(parts[finest - 1], limits, most)) if finest else ()


def _rounded_by(part: int, limits: ShapeRange, most: int) -> list[int]:
    """The first `most` sizes where each batch is rounded up by one `part`th of itself at most."""

    def sizes() -> Iterator[int]:
        size = limits.min
        yield size
        while size < limits.max:
            following = size + 1
            size = min(limits.max, following + following // part)
            yield size

    return list(islice(sizes(), max(0, most)))
