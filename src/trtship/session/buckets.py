"""The sizes of batches that others are rounded up to, where there are more sizes than CUDA graphs."""

from __future__ import annotations

from trtship.spec import ShapeRange

PARTS = (8, 4)
"""A batch is rounded up by an eighth of itself at most; by a quarter where that would take too many buckets."""
SHARE = 3 / 4
"""Of the graphs, at most, are for buckets; the others are for sizes that come often."""


def buckets(limits: ShapeRange, graphs: int, *, beside: int = 0) -> tuple[int, ...]:
    """Sizes from the smallest batch to the largest: every batch is one of them, or rounded up to the next. None where
    each size can have a graph, or where batches would have to be rounded up by more than a quarter. `beside` are sizes
    that keep a graph of their own."""
    if limits.max - limits.min < graphs:
        return ()
    for part in PARTS:
        found = [limits.min]
        while found[-1] < limits.max:
            next_size = found[-1] + 1
            found.append(min(limits.max, next_size + next_size // part))
        if len(found) + beside <= SHARE * graphs:
            return tuple(found)
    return ()
