"""Running again gives the same: nothing is left over from a run, and nothing is read before it is written.

Where later runs go another way than the first (a plan is captured in a CUDA graph), `compare` holds both against the
reference."""

from __future__ import annotations

from typing import ClassVar

from trtship.verify.probes.base import Attack, Probe
from trtship.verify.verdict import Verdict


class Repeated(Probe):
    """The same rows of each batch, one run after the other."""

    name: ClassVar[str] = "repeated"
    claim: ClassVar[str] = "running again should give the same"
    at_other_sizes: ClassVar[bool] = True

    def run(self, attack: Attack) -> Verdict | None:
        measures = []
        for batch in attack.batches:
            feeds = attack.rows(range(batch))
            first = attack.run(feeds)
            for _ in range(max(1, attack.session.steady_after)):
                measures += attack.compare(first, attack.run(feeds), batch=batch)
        return attack.same(self, measures)
