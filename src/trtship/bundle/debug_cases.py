"""The inputs on which a bundle is looked at: its reference rows at every size, and its rows at the edges."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np

from trtship.bundle.bundle import Bundle
from trtship.spec import allowed_by, batch_range
from trtship.verify import Reference
from trtship.verify.compare import ON_CPU, batches_of
from trtship.verify.sizes import in_words
from trtship.verify.verdict import REL_L2


class Case(msgspec.Struct, frozen=True):
    """`name` for people, and the inputs by name."""

    name: str
    feeds: dict[str, Any]


def cases_of(bundle: Bundle) -> Iterator[Case]:
    """Yield the inputs to look at: those on which a check has failed, then the smallest first, since the less a fault
    needs, the easier it is looked into."""
    m, reference = bundle.manifest, bundle.reference()
    sizes, allowed = batch_range(m.inputs, m.ranges), allowed_by(m.rules)
    batches = sizes.sizes_to_check if reference.batch is not None else (0,)
    runs = [(reference, size) for size in batches if not size or allowed(_sizes(reference, size))]
    for other in sorted(reference.others, key=lambda case: sum(case.sizes.values())):
        runs += [(other, batch) for batch in batches_of(other, m.ranges, most=ON_CPU, allowed=allowed)]
    failed = _failed(bundle)
    for case, size in sorted(runs, key=lambda run: _sizes(*run) not in failed):
        where = _sizes(case, size)
        yield Case("the reference rows" + (f", {in_words(where)}" if where else ""), case.at(size)[0])
    for case in reference.cases:
        yield from _edges(case, min(max(sizes.min, 1), sizes.max))


def _sizes(case: Reference, batch: int) -> dict[str, int]:
    return {case.batch: batch, **case.sizes} if case.batch is not None else dict(case.sizes)


def _failed(bundle: Bundle) -> list[dict[str, int]]:
    """Return the sizes at which the comparison with the original has failed."""
    compared = [v for v in bundle.manifest.verdicts if v.gate == REL_L2 and v.state == "failed" and v.bound is not None]
    return [
        one.sizes
        for verdict in compared
        for one in verdict.measures
        if not one.finite or (verdict.bound is not None and (one.rel_l2 or 0.0) > verdict.bound.at(one.sizes).value)
    ]


def _edges(reference: Reference, size: int) -> Iterator[Case]:
    """Yield the edge rows of one set of sizes, `size` at once."""
    edges = reference.edges
    if edges is None:
        return
    where = f", {in_words(reference.sizes)}" if reference.sizes else ""
    count = len(edges.names)
    if reference.batch is None:
        for index, name in enumerate(edges.names):
            yield Case(f"the edge row {name}{where}", {key: array[index] for key, array in edges.inputs.items()})
        return
    for begin in range(0, count, size):
        order = np.arange(begin, begin + size) % count
        name = ", ".join(edges.names[i] for i in order)
        feeds = {key: np.ascontiguousarray(a[order]) for key, a in edges.inputs.items()}
        yield Case(f"the edge rows {name}{where}", feeds)
