"""Changing one row leaves its neighbours alone: nothing leaks from row to row."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from trtship.verify.probes.base import Attack, Probe, taken
from trtship.verify.verdict import Verdict


class ChangedRow(Probe):
    """The first, a middle and the last row of a batch, each in turn, become the largest row of the reference's edges,
    so that even a small share of it shows in the others."""

    name: ClassVar[str] = "changed_row"
    claim: ClassVar[str] = "changing one row should leave the others alone"
    at_other_sizes: ClassVar[bool] = True

    def run(self, attack: Attack) -> Verdict | None:
        if not attack.several:
            return None
        batch = attack.several[len(attack.several) // 2]
        feeds = attack.rows(range(batch))
        before = attack.run(feeds)
        loud = _loudest(attack)
        measures = []
        for row in sorted({0, batch // 2, batch - 1}):
            changed = {name: array.copy() for name, array in feeds.items()}
            for name, array in changed.items():
                array[row] = loud[name]
            others = np.delete(np.arange(batch), row)
            after = attack.run(changed)
            measures += attack.compare(taken(before, others), taken(after, others), batch=batch, changed=row)
        return attack.same(self, measures)


def _loudest(attack: Attack) -> dict[str, Any]:
    """The edge row of the largest norm of which the original says something finite; without edges, a reference row
    that is in none of the batches' first rows."""
    edges, reference = attack.reference.edges, attack.reference
    if edges is None or reference.batch is None:
        return {name: array[reference.rows // 2 + 1 :][:1].sum(0) for name, array in reference.inputs.items()}
    sizes = sum(np.square(a.astype(np.float64)).reshape(len(edges.names), -1).sum(1) for a in edges.inputs.values())
    row = int(np.argmax(np.where(edges.finite, sizes, -1)))
    return {name: array[row] for name, array in edges.inputs.items()}
