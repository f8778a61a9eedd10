"""Permuting rows permutes outputs: no row's place is mixed up with another's."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from trtship.verify.probes.base import Attack, Probe, taken
from trtship.verify.verdict import Verdict


class PermutedRows(Probe):
    """The batch backwards and moved on by one, at every batch: every row changes its place."""

    name: ClassVar[str] = "permuted_rows"
    claim: ClassVar[str] = "permuting rows should permute the outputs"
    at_other_sizes: ClassVar[bool] = True

    def run(self, attack: Attack) -> Verdict | None:
        if not attack.several:
            return None
        measures = []
        for batch in attack.several:
            order = np.roll(np.arange(batch)[::-1], 1 - batch % 2)
            straight = attack.run(attack.rows(range(batch)))
            permuted = attack.run(attack.rows(order))
            measures += attack.compare(taken(straight, order), permuted, batch=batch)
        return attack.same(self, measures)
