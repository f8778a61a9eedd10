"""Identical rows give identical rows: nothing depends on where in the batch a row stands."""

from __future__ import annotations

from typing import ClassVar

from trtship.verify.probes.base import Attack, Probe, taken
from trtship.verify.verdict import Verdict


class IdenticalRows(Probe):
    """One row repeated through the whole batch, at every batch."""

    name: ClassVar[str] = "identical_rows"
    claim: ClassVar[str] = "identical rows should give identical rows"
    at_other_sizes: ClassVar[bool] = True

    def run(self, attack: Attack) -> Verdict | None:
        if not attack.several:
            return None
        measures = []
        for batch in attack.several:
            found = attack.run(attack.rows([1] * batch))
            measures += attack.compare(taken(found, [0] * batch), found, batch=batch)
        return attack.same(self, measures)
