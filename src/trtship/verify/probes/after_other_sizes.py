"""Running after larger and after smaller sizes gives the same: no buffer keeps what other sizes left."""

from __future__ import annotations

from typing import ClassVar

from trtship.verify.probes.base import Attack, Probe
from trtship.verify.verdict import Verdict


class AfterOtherSizes(Probe):
    """Up through the sizes of the dimensions beside the batch, then down, then up again, at the smallest batch: each
    after larger and after smaller ones gives what it gave on the way up."""

    name: ClassVar[str] = "after_other_sizes"
    claim: ClassVar[str] = "running after other sizes should give the same"
    of_sizes: ClassVar[bool] = True

    def run(self, attack: Attack) -> Verdict | None:
        cases = sorted((attack.reference, *attack.others), key=lambda case: sum(case.sizes.values()))
        cases = [cases[i] for i in sorted({0, len(cases) // 2, len(cases) - 1})]
        if len(cases) < 2:
            return None
        feeds = [case.at(attack.batches[0])[0] for case in cases]
        first = [attack.run(one) for one in feeds]
        up, measures = range(len(cases)), []
        for now in (*up[-2::-1], *up[1:]):
            measures += attack.compare(first[now], attack.run(feeds[now]), batch=attack.batches[0], **cases[now].sizes)
        return attack.same(self, measures)
