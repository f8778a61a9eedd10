"""Candidates and eager PyTorch timed against each other: the bench's race, everybody in a process of their own."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

import msgspec

from trtship.bench.build import builds_on_gpu
from trtship.bench.entrants import Entrant
from trtship.bench.peers.base import Measures
from trtship.bench.plan import PlanFile, Plans
from trtship.bench.protocol import Work
from trtship.bench.race import Heat, Truth, race
from trtship.bench.report import Row
from trtship.bundle.candidates import Latency
from trtship.deployment.making import Common, Made
from trtship.deployment.search.attempt import Attempt
from trtship.deployment.stages import GRAPH, PLAN, REPORT, Stages
from trtship.files import temporary_folder
from trtship.sources import LoadedModel
from trtship.spec import Precision, Record, batch_range, from_json, to_json
from trtship.verify import Reference

EAGER = "eager"
WRONG = "its output was wrong while it was timed"
WITHIN = 600.0
"""Seconds in which the processes of one batch must get ready."""


class Times(Record, frozen=True):
    """Latencies by a candidate's name, or `EAGER`; the reasons of those that were not timed; and of these, which were
    `wrong`: they gave other outputs while they were timed."""

    latency: dict[str, tuple[Latency, ...]]
    failed: dict[str, str]
    wrong: tuple[str, ...] = ()


class _Fleeting(Exception):
    """Times that are not to be remembered: not everybody has one."""

    def __init__(self, times: Times) -> None:
        self.times = times


def time_all(stages: Stages, common: Common, attempts: Sequence[Attempt]) -> Times:
    """Everybody at the smallest, the usual and the largest batch; remembered where all could be timed."""
    made = {a.candidate.name: a.made for a in attempts if a.made is not None}
    limits = batch_range(common.model.inputs, common.ranges)
    batches = tuple(dict.fromkeys((limits.opt, limits.min, limits.max)))

    def make(folder: Path) -> None:
        times = _race(stages, common, made, batches)
        if times.failed:
            raise _Fleeting(times)
        (folder / REPORT).write_bytes(to_json(times))

    key = {
        "plans": {name: [one.plan.files[PLAN], one.way.precision.tf32] for name, one in made.items()},
        "batches": list(batches),
        "reference": common.original.files,
        **stages.part("model", "family", "gpu", "versions"),
    }
    try:
        entry = stages.run("time", key, make)
    except _Fleeting as fault:
        return fault.times
    return from_json(entry.read(REPORT), Times, what="the times of the candidates")


def _race(stages: Stages, common: Common, made: dict[str, Made], batches: Sequence[int]) -> Times:
    reference = common.reference
    has_module = isinstance(stages.model, LoadedModel)
    with temporary_folder("trtship-race-") as folder:
        reference.cases[0].save(folder / "reference")  # timed at the usual sizes
        work = _work(stages, common, folder / "reference", reference)
        bound = max(bound.value for one in made.values() for subject, bound in one.bounds.items() if subject == "plan")
        truth = Truth(reference=reference, exact=None, bound=bound)
        heats = []
        for batch in batches:
            entrants = [_entrant(stages, common, name, one, batch) for name, one in made.items()]
            if has_module:
                entrants.append(Entrant(name=EAGER, peer=EAGER, batch=batch, measures=Measures.ALONE))
            heats.append(Heat(work=work, batch=batch, entrants=entrants, truth=lambda: truth))
        outcomes = race(
            [[heat] for heat in heats],
            folder=folder,
            within=WITHIN,
            builds_on_gpu=builds_on_gpu(stages.family.name),
            progress=stages.progress,
        )
    return times_of([row for outcome in outcomes for row in outcome.rows], (*made, *([EAGER] * has_module)))


def times_of(rows: Sequence[Row], names: Sequence[str]) -> Times:
    """The rows that were right and timed, by name; a name is timed only where it is at every batch."""
    latency: dict[str, tuple[Latency, ...]] = {}
    failed: dict[str, str] = {}
    wrong: list[str] = []
    for name in names:
        own = [row for row in rows if row.name == name]
        bad = [f"batch {row.batch}: {row.reason or WRONG}" for row in own if not row.counts]
        if any(not row.counts and not row.reason for row in own):
            wrong.append(name)
        if bad or not own:
            failed[name] = "; ".join(bad) or "it did not get ready"
            continue
        latency[name] = tuple(
            Latency(batch=row.batch, ms=row.gpu.median_ms, low=row.gpu.low_ms, high=row.gpu.high_ms)
            for row in sorted(own, key=lambda row: row.batch)
            if row.gpu is not None
        )
    return Times(latency=latency, failed=failed, wrong=tuple(wrong))


def _work(stages: Stages, common: Common, folder: Path, reference: Reference) -> Work:
    """The original is run as it is: in fp32."""
    model = common.model
    return Work(
        source=stages.options.source,
        inputs=model.inputs,
        outputs=model.export.outputs,
        precision=Precision.FP32,
        graph=str((common.fast.folder / GRAPH).absolute()),
        reference=str(folder),
        sizes=reference.sizes,
    )


def _entrant(stages: Stages, common: Common, name: str, made: Made, batch: int) -> Entrant:
    ready: Future[PlanFile] = Future()
    ready.set_result(plan_file(stages, common, name, made, batch))
    return Entrant(name=name, peer=Plans.name, batch=batch, ours=True, plans=[(name, ready)])


def plan_file(stages: Stages, common: Common, name: str, made: Made, batch: int) -> PlanFile:
    """A candidate's plan, as another process is told of it."""
    return PlanFile(
        name=name,
        build=0,
        path=str((made.plan.folder / PLAN).absolute()),
        inputs=made.inputs,
        outputs=made.outputs,
        family=stages.family.name,
        tf32=made.way.precision.tf32,
        dynamic=batch not in made.build.single and any(r.min < r.max for r in common.ranges.values()),
    )


def with_times(attempts: Sequence[Attempt], times: Times) -> list[Attempt]:
    """The attempts, with their latencies; those that were wrong have failed."""
    found = []
    for one in attempts:
        name = one.candidate.name
        candidate = msgspec.structs.replace(one.candidate, latency=times.latency.get(name, ()))
        if name in times.wrong:
            candidate = msgspec.structs.replace(candidate, outcome="failed", reason=times.failed[name])
        found.append(msgspec.structs.replace(one, candidate=candidate))
    return found
