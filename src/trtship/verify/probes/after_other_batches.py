"""Running after a larger and after a smaller batch gives the same: no buffer keeps what another batch left."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

from trtship.verify.probes.base import Attack, Probe
from trtship.verify.verdict import Verdict


class AfterOtherBatches(Probe):
    """Up through the batches, then down, then up again: each after a larger and after a smaller one gives what it gave
    on the way up. The rows differ from batch to batch, so that what is left over is another row's."""

    name: ClassVar[str] = "after_other_batches"
    claim: ClassVar[str] = "running after another batch should give the same"

    def run(self, attack: Attack) -> Verdict | None:
        if len(attack.batches) < 2:
            return None
        feeds = {b: attack.rows(range(place, place + b)) for place, b in enumerate(attack.batches)}
        first = {b: attack.run(feeds[b]) for b in attack.batches}
        way = (*attack.batches, *attack.batches[-2::-1], *attack.batches[1:])[len(attack.batches) - 1 :]
        measures = []
        for before, batch in pairwise(way):
            measures += attack.compare(first[batch], attack.run(feeds[batch]), batch=batch, after=before)
        return attack.same(self, measures)
