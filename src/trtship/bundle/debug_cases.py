"""The inputs on which a bundle is looked at: its reference rows at every size, and its rows at the edges."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np

from trtship.bundle.bundle import Bundle
from trtship.spec import batch_range


class Case(msgspec.Struct, frozen=True):
    """`name` for people, and the inputs by name."""

    name: str
    feeds: dict[str, Any]


def cases_of(bundle: Bundle) -> Iterator[Case]:
    """The smallest first: the less a fault needs, the easier it is looked into."""
    m, reference = bundle.manifest, bundle.reference()
    sizes = batch_range(m.inputs, m.ranges)
    for size in sizes.sizes_to_check if reference.batch is not None else (0,):
        name = f"the reference rows, {reference.batch}={size}" if size else "the reference rows"
        yield Case(name, reference.at(size)[0])
    edges = reference.edges
    if edges is None:
        return
    count = len(edges.names)
    if reference.batch is None:
        for index, name in enumerate(edges.names):
            yield Case(f"the edge row {name}", {key: array[index] for key, array in edges.inputs.items()})
        return
    size = min(max(sizes.min, 1), sizes.max)
    for begin in range(0, count, size):
        order = np.arange(begin, begin + size) % count
        name = ", ".join(edges.names[i] for i in order)
        yield Case(f"the edge rows {name}", {key: np.ascontiguousarray(a[order]) for key, a in edges.inputs.items()})
