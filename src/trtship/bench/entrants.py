"""Who takes part: one worker process for each variant at each batch, and when each prepares itself."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

from trtship.bench.child import TO_LOAD, Child
from trtship.bench.peers.base import Measures
from trtship.bench.plan import PlanFile
from trtship.bench.protocol import Job, Prepare, Prepared, Ready, Work
from trtship.bench.reasons import reason_of
from trtship.bench.timing import RunnerFailed
from trtship.progress import Progress

CORES = os.cpu_count() or 1
Plan = Future[PlanFile]


class Entrant:
    """One worker. `name` stands in the table where it has no runners; `plans` are what it runs, as they get ready;
    `path` goes ahead on its import path; `measures` is its peer's.

    After the preparation: `runners`, its `seconds`, and in `failed` what went wrong, if anything.
    """

    def __init__(
        self,
        *,
        name: str,
        peer: str,
        variant: str = "",
        batch: int,
        ours: bool = False,
        measures: Measures = Measures.NO,
        path: Path | None = None,
        plans: Sequence[tuple[str, Plan]] = (),
    ) -> None:
        self.name, self.peer, self.variant, self.batch = name, peer, variant, batch
        self.ours, self.measures, self.path, self.plans = ours, measures, path, tuple(plans)
        self.child: Child | None = None
        self.runners: tuple[Prepared, ...] = ()
        self.failed: list[tuple[str, str]] = []
        self.seconds = 0.0
        self._loaded = threading.Event()

    def start(self, work: Work, *, device: str, folder: Path) -> None:
        """Start its process and have it load what it needs, on the CPU, in the background."""
        job = Job(work=work, peer=self.peer, variant=self.variant, batch=self.batch, device=device, folder=str(folder))
        self.child = Child(job, path=self.path)
        threading.Thread(target=self._load, daemon=True).start()

    def _load(self) -> None:
        assert self.child is not None
        try:
            self.child.load()
        except RunnerFailed as error:
            self.failed.append((self.name, str(error)))
        self._loaded.set()

    def wait_until_loaded(self) -> None:
        """Until it has, or has failed to."""
        self._loaded.wait(TO_LOAD)

    def prepare(self, within: Callable[[], float]) -> None:
        """Build, compile, warm up, capture: its process is ended where that takes longer than `within`() seconds."""
        assert self.child is not None
        if self.failed:
            return
        ready = []
        for name, plan in self.plans:
            try:
                ready.append(plan.result())
            except Exception as error:
                self.failed.append((name, str(error) if isinstance(error, RunnerFailed) else reason_of(error)))
        if self.plans and not ready:
            return
        left = within()
        if left <= 0:
            self.failed.append((self.name, "its turn to prepare did not come in time"))
            return
        try:
            answer = self.child.ask(Prepare(plans=tuple(ready)), within=left, what="get ready")
        except RunnerFailed as error:
            self.failed.append((self.name, str(error)))
            return
        assert isinstance(answer, Ready)
        self.runners = answer.runners
        self.failed += [(lost.name or f"{self.name}, the rest", lost.reason) for lost in answer.absent]

    def close(self) -> None:
        if self.child is not None:
            self.child.close()


def prepare_all(
    entrants: Sequence[Entrant],
    *,
    within: float,
    meanwhile: Callable[[], None],
    builds_on_gpu: bool,
    progress: Progress,
) -> None:
    """First those that must be alone on the GPU, one after the other; then those that take turns on it, all at once;
    then the others. Each of the three rounds has `within` seconds, from when its processes have loaded. `meanwhile` and
    the building of plans go on beside the first two, for they are work for the CPU; where they are not
    (`builds_on_gpu`), they come before."""
    pool = ThreadPoolExecutor(1)
    try:
        if builds_on_gpu:
            meanwhile()
            wait([plan for entrant in entrants for _, plan in entrant.plans])
        with progress.stage("prepare", "those that time kernels meanwhile: alone, then in turn"):
            first = pool.submit(_measured, entrants, within, progress)
            if not builds_on_gpu:
                meanwhile()
            first.result()
        with progress.stage("prepare", "the others, several at once"):
            _at_once([e for e in entrants if e.measures is Measures.NO], max(1, CORES // 2), within, progress)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _measured(entrants: Sequence[Entrant], within: float, progress: Progress) -> None:
    _at_once([e for e in entrants if e.measures is Measures.ALONE], 1, within, progress)
    in_turn = [e for e in entrants if e.measures is Measures.IN_TURN]
    _at_once(in_turn, len(in_turn), within, progress)


def _at_once(entrants: Sequence[Entrant], count: int, within: float, progress: Progress) -> None:
    for entrant in entrants:
        entrant.wait_until_loaded()
    until = time.monotonic() + within

    def prepare(entrant: Entrant) -> None:
        begun = time.monotonic()
        entrant.prepare(lambda: until - time.monotonic())
        entrant.seconds = round(time.monotonic() - begun, 1)
        how = "ready" if entrant.runners else "failed"
        progress.note(f"{entrant.name}, batch {entrant.batch}: {how} after {entrant.seconds} s")

    pool = ThreadPoolExecutor(max(1, count))
    try:
        for done in [pool.submit(prepare, entrant) for entrant in entrants]:
            done.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
