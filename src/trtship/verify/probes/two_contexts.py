"""Two contexts at once give what each gives alone: they share no memory."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

from trtship.session.base import Session
from trtship.verify.probes.base import Attack, Probe
from trtship.verify.verdict import Verdict

TURNS = 3
"""Runs of each: the first of them may still wait for kernels to be compiled, and meets nobody."""


class TwoContexts(Probe):
    """A second session beside the first, each in a thread with rows of its own, several times."""

    name: ClassVar[str] = "two_contexts"
    claim: ClassVar[str] = "two contexts at once should give what each gives alone"
    of_memory: ClassVar[bool] = True

    def run(self, attack: Attack) -> Verdict | None:
        batch = attack.batch
        feeds = [attack.rows(range(batch)), attack.rows(range(1, 1 + batch))]
        alone = [attack.run(one) for one in feeds]

        def turns(session: Session, which: int) -> list[dict[str, Any]]:
            return [attack.run(feeds[which], session) for _ in range(TURNS)]

        with attack.open_another() as other, ThreadPoolExecutor(max_workers=2) as threads:
            jobs = [threads.submit(turns, session, i) for i, session in enumerate((attack.session, other))]
            both = [job.result() for job in jobs]
        measures = []
        for which, runs in enumerate(both):
            for found in runs:
                measures += attack.compare(alone[which], found, B=batch, context=which)
        return attack.same(self, measures)
