"""Running twice gives the same: nothing is left over from a run, and nothing is read before it is written."""

from __future__ import annotations

from typing import ClassVar

from trtship.verify.probes.base import Attack, Probe
from trtship.verify.verdict import Verdict


class Repeated(Probe):
    """The same rows twice, one after the other."""

    name: ClassVar[str] = "repeated"
    claim: ClassVar[str] = "running twice should give the same"

    def run(self, attack: Attack) -> Verdict | None:
        feeds = attack.rows(range(attack.batch))
        return attack.same(self, attack.compare(attack.run(feeds), attack.run(feeds), B=attack.batch))
