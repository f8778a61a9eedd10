"""One candidate: built, put into a bundle, verified; remembered whether it passed or not."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from trtship.bundle.bundle import Bundle
from trtship.bundle.candidates import Candidate
from trtship.bundle.subjects import CHECKS
from trtship.bundle.verify import check_bundle
from trtship.deployment.assemble import assemble
from trtship.deployment.making import Common, Made, make_plan
from trtship.deployment.search.check_process import check_apart
from trtship.deployment.search.gates import judged, measured
from trtship.deployment.stages import GRAPH, PLAN, REPORT, Stages
from trtship.deployment.way import Way
from trtship.errors import BuildError, GraphError
from trtship.files import temporary_folder
from trtship.gpu import list_gpus
from trtship.spec import Record, as_plain, from_json, to_json
from trtship.verify import Verdict


class Attempt(msgspec.Struct, frozen=True):
    """What came of a way; `made` is None where it could not be built."""

    way: Way
    candidate: Candidate
    made: Made | None


class Tried(Record, frozen=True):
    """What is remembered of a way: its verdicts, and the seconds that it took to make and check."""

    verdicts: tuple[Verdict, ...]
    seconds: float


class _Fleeting(Exception):
    """What is not to be remembered."""

    def __init__(self, tried: Tried) -> None:
        self.tried = tried


def attempt(stages: Stages, common: Common, way: Way, *, known: Sequence[Verdict] = ()) -> Attempt:
    """Build and verify. What this way alone cannot do (a graph, a build) fails it; all else is raised. `known` are
    verdicts of ways that were tried before."""
    begun = time.monotonic()
    bare = Candidate(name=way.name, precision=way.precision, kept=way.kept)
    try:
        made = make_plan(stages, common, way)
    except (GraphError, BuildError) as error:
        why = f"{error.what}: {error.why}" if error.why else error.what
        seconds = round(time.monotonic() - begun, 2)
        return Attempt(way, msgspec.structs.replace(bare, outcome="failed", reason=why, seconds=seconds), None)
    tried = _tried(stages, common, made, begun, known)
    found = judged(measured(bare, tried.verdicts))
    size = (made.plan.folder / PLAN).stat().st_size / 2**20
    return Attempt(way, msgspec.structs.replace(found, plan_mib=round(size, 2), seconds=tried.seconds), made)


def _tried(stages: Stages, common: Common, made: Made, begun: float, known: Sequence[Verdict]) -> Tried:
    def make(folder: Path) -> None:
        with temporary_folder("trtship-candidate-") as draft:
            assemble(stages, common, made, draft, name="candidate")
            verdicts = _checked(stages, Bundle.open(draft), known)
        tried = Tried(verdicts=verdicts, seconds=round(time.monotonic() - begun, 2))
        if not all(map(_is_lasting, verdicts)):
            raise _Fleeting(tried)
        (folder / REPORT).write_bytes(to_json(tried))

    files = {
        "graph": {name: d for name, d in common.fast.files.items() if name.startswith(GRAPH)},
        "typed": {name: d for name, d in made.typed.files.items() if name.startswith(GRAPH)},
        "plan": made.plan.files[PLAN],
        "original": common.original.files,
    }
    key = {
        **files,
        "precision": made.way.precision.value,
        "batch": {letter: str(r) for letter, r in common.ranges.items()},
        "bounds": as_plain(made.bounds),
        "checks": CHECKS,
        **stages.part("model", "io_dtype", "labels", "family", "gpu", "versions"),
        **stages.part("eval", "max_drop", "max_rel_l2", "min_cosine"),
    }
    try:
        entry = stages.run("candidate", key, make, of=made.way.name)
    except _Fleeting as fault:
        return fault.tried
    return from_json(entry.read(REPORT), Tried, what="what came of a candidate")


def _checked(stages: Stages, bundle: Bundle, known: Sequence[Verdict]) -> tuple[Verdict, ...]:
    """With a GPU in a process of its own: what is multiplied in TF32 is settled once a process, and a plan that breaks
    CUDA would take the others with it."""
    eval_dir = None if stages.options.eval_dir is None else Path(stages.options.eval_dir)
    if list_gpus():
        return check_apart(bundle, eval_dir=eval_dir, family=stages.family.name, known=known, progress=stages.progress)
    return check_bundle(bundle, eval_dir=eval_dir, family=stages.family.name, known=known, progress=stages.progress)


def _is_lasting(verdict: Verdict) -> bool:
    """A failure with a figure, or with a NaN or Inf, would fail again; one without may have been this process's."""
    has_figure = verdict.worst is not None or any(not m.finite for m in verdict.measures)
    return verdict.state != "failed" or has_figure
