"""Two contexts at once give what each gives alone: they share no memory, be they of one engine or of two."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

from trtship.session.base import Session
from trtship.verify.probes.base import Attack, Probe
from trtship.verify.verdict import Verdict

TURNS = 3
"""Runs of each: the first of them may still wait for kernels to be compiled, and meets nobody."""


class TwoContexts(Probe):
    """Two threads with rows of their own, several times: each with a session, and both with one, where it runs several
    calls at once."""

    name: ClassVar[str] = "two_contexts"
    claim: ClassVar[str] = "two contexts at once should give what each gives alone"
    of_memory: ClassVar[bool] = True

    def run(self, attack: Attack) -> Verdict | None:
        batch = attack.batch
        feeds = [attack.rows(range(batch)), attack.rows(range(1, 1 + batch))]
        alone = [attack.run(one) for one in feeds]

        def turns(session: Session, which: int) -> list[dict[str, Any]]:
            return [attack.run(feeds[which], session) for _ in range(TURNS)]

        measures = []
        with attack.open_another() as other, ThreadPoolExecutor(max_workers=2) as threads:
            pairs = [(attack.session, other)]
            if attack.session.workers > 1:
                pairs.append((attack.session, attack.session))
            for pair in pairs:
                jobs = [threads.submit(turns, session, which) for which, session in enumerate(pair)]
                for which, job in enumerate(jobs):
                    for found in job.result():
                        measures += attack.compare(alone[which], found, B=batch, context=which)
        return attack.same(self, measures)
