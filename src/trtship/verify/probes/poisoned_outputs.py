"""Outputs poisoned with NaN before each run: a plan that leaves part of its output unwritten is seen."""

from __future__ import annotations

from typing import ClassVar

from trtship.verify.probes.base import Attack, Probe
from trtship.verify.verdict import Verdict


class PoisonedOutputs(Probe):
    """The reference rows at every batch, the largest first, twice: as ever, and with NaN in the memory that the outputs
    go to. What is left there from a run before looks right, but for this; whether it is right, the comparison with the
    original says. Sessions that make new outputs for each run have no such memory."""

    name: ClassVar[str] = "poisoned_outputs"
    claim: ClassVar[str] = "every element of the outputs should be written"
    of_memory: ClassVar[bool] = True
    at_other_sizes: ClassVar[bool] = True

    def run(self, attack: Attack) -> Verdict | None:
        if not attack.session.can_poison:
            return None
        measures = []
        for batch in reversed(attack.batches):
            feeds, _ = attack.reference.at(batch)
            usual = attack.run(feeds)
            attack.session.poison = True
            try:
                measures += attack.compare(usual, attack.run(feeds), batch=batch)
            finally:
                attack.session.poison = False
        return attack.same(self, measures)
