"""Two contexts at once give what each gives alone: they share no memory, be they of one engine or of two."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Barrier, BrokenBarrierError
from typing import Any, ClassVar

from trtship.session.base import Session
from trtship.verify.probes.base import Attack, Probe
from trtship.verify.verdict import Verdict

TURNS = 3
"""Runs of each, begun at the same time."""


class TwoContexts(Probe):
    """Two threads with rows of their own, several times: each with a session, and both with one, where it runs several
    calls at once. All is warm before, or one would be done while the other still waits for its kernels."""

    name: ClassVar[str] = "two_contexts"
    claim: ClassVar[str] = "two contexts at once should give what each gives alone"
    of_memory: ClassVar[bool] = True

    def run(self, attack: Attack) -> Verdict | None:
        batch = attack.batch
        feeds = [attack.rows(range(batch)), attack.rows(range(1, 1 + batch))]
        alone = [attack.run(one) for one in feeds]
        measures = []
        with attack.open_another() as other, ThreadPoolExecutor(max_workers=2) as threads:
            pairs = [(attack.session, other)]
            if attack.session.workers > 1:
                pairs.append((attack.session, attack.session))
            for session in (attack.session, other):
                session.warm_up([batch], sizes=attack.reference.sizes)
            for pair in pairs:
                together = Barrier(2)
                jobs = [threads.submit(_turns, attack, session, feeds[i], together) for i, session in enumerate(pair)]
                for which, job in enumerate(jobs):
                    for found in job.result():
                        measures += attack.compare(alone[which], found, batch=batch, context=which)
        return attack.same(self, measures)


def _turns(attack: Attack, session: Session, feeds: dict[str, Any], together: Barrier) -> list[dict[str, Any]]:
    found = []
    try:
        for _ in range(TURNS):
            with suppress(BrokenBarrierError):  # the other has failed, and says why
                together.wait()
            found.append(attack.run(feeds, session))
    finally:
        together.abort()  # with nobody left to wait for
    return found
