"""The search: try every candidate, look for mixtures where a plain precision fails, time what passed, choose."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import msgspec

from trtship.bundle.candidates import COLUMNS, Candidate, Choice, Latency, candidate_rows
from trtship.deployment.making import Common, Made
from trtship.deployment.quantized import check_quantized
from trtship.deployment.search.attempt import Attempt, attempt
from trtship.deployment.search.choose import TIMED, UNTIMED, choose_timed, choose_untimed, latency_at, why_not
from trtship.deployment.search.estimate import estimated_ms
from trtship.deployment.search.gates import gates_of, plan_is_broken
from trtship.deployment.search.mixed import search_mixed
from trtship.deployment.search.order import TRIED, risk
from trtship.deployment.search.profile_process import LayerMilliseconds, layer_times_apart
from trtship.deployment.search.slower import with_reasons
from trtship.deployment.search.timing import EAGER, plan_file, time_all, with_times
from trtship.deployment.search_options import MIXED
from trtship.deployment.stages import GRAPH, PLAN, REPORT, NotRemembered, Stages
from trtship.deployment.stages.calibrate import calibrated
from trtship.deployment.way import Way
from trtship.errors import DeviceError, GateError, SpecError
from trtship.gpu import list_gpus
from trtship.spec import as_plain, from_json, to_json
from trtship.verify import Verdict

BROKEN = "its graph is right and its plan says NaN or Inf: which nodes TensorRT gets wrong, sensitivity does not tell"


class Found(msgspec.Struct, frozen=True):
    """What is to be shipped, and the record of how it was found."""

    made: Made
    candidate: Candidate
    choice: Choice


def search(stages: Stages, common: Common, *, begun: float, until: float) -> Found:
    """`begun` and `until` are times of `time.monotonic`: when the deploy began, and when no more candidate is to be
    begun. What has passed by then is timed all the same: nothing is shipped on a GPU because of an estimate.

    Raises GateError where no candidate passed.
    """
    one = _Search(stages, common, until=until)
    one.try_plain()
    one.try_mixed()
    return one.finish(begun)


class _Search:
    def __init__(self, stages: Stages, common: Common, *, until: float) -> None:
        self.stages, self.common, self.until = stages, common, until
        self.attempts: list[Attempt] = []
        self.skipped: list[Candidate] = []
        self.complete = True
        self.asked = stages.options.candidates

    def try_plain(self) -> None:
        for precision in TRIED:
            if self.asked and precision.value not in self.asked:
                continue
            way = Way(precision=precision)
            if why := self._cannot(way):
                self.skipped.append(_not_tried(way, why))
            elif not (self.attempts and self._is_late()):  # one at least, however little time there is
                self._tried(attempt(self.stages, self.common, way, known=self._known()))
            elif (remembered := self._remembered(way)) is not None:
                self._tried(remembered)
            else:
                self.skipped.append(_not_tried(way, self._out_of_time()))

    def try_mixed(self) -> None:
        if self.asked and MIXED not in self.asked:
            return
        for plain in [a for a in self.attempts if a.candidate.outcome == "failed" and a.made is not None]:
            if plain.way.precision.graph_dtype == "float32":
                continue
            why = BROKEN if plan_is_broken(plain.candidate) else self._out_of_time() if self._is_late() else ""
            if why:
                left_out = _not_tried(plain.way, why)
                self.skipped.append(msgspec.structs.replace(left_out, name=f"{plain.way.precision.value} mixed"))
                continue
            ranges = self._ranges() if plain.way.precision.quantized else {}
            search_mixed(self.stages, self.common, plain, ranges=ranges, until=self.until, tried=self._tried)

    def _remembered(self, way: Way) -> Attempt | None:
        """What an earlier run found of a way: it takes no time."""
        self.stages.only_remembered = True
        try:
            return attempt(self.stages, self.common, way)
        except NotRemembered:
            return None
        finally:
            self.stages.only_remembered = False

    def _known(self) -> tuple[Verdict, ...]:
        """What the first way that said something of the fp32 graph said of it: it is the same in all."""
        return next((found for a in self.attempts if (found := a.candidate.verdicts)), ())

    def finish(self, begun: float) -> Found:
        passed = [a for a in self.attempts if a.candidate.outcome == "passed"]
        if not passed:
            raise _nothing_passed(self.attempts, self.skipped)
        batch = self.common.usual_batch
        gpus, rule, winner = list_gpus(), "", None
        eager: tuple[Latency, ...] = ()
        estimates = self._estimates(passed)
        if gpus:
            times = time_all(self.stages, self.common, passed)
            timed = {a.candidate.name: a for a in with_times(passed, times)}
            self.attempts = [timed.get(a.candidate.name, a) for a in self.attempts]
            for name, reason in times.failed.items():
                self.stages.progress.note(f"{name} was not timed: {reason}")
            eager = times.latency.get(EAGER, ())
            winner, rule = choose_timed(self.attempts, batch=batch), TIMED.format(batch=batch)
        is_timed = winner is not None
        if winner is None:
            why = "nothing could be timed" if gpus else "no GPU here"
            winner, rule = choose_untimed(self.attempts, estimates), UNTIMED.format(why=why, batch=batch)
        if winner is None:
            raise _nothing_passed(self.attempts, self.skipped)
        assert winner.made is not None
        profile = self._layer_times if is_timed else None
        attempts = with_reasons(self._outcomes(winner, batch, estimates), self.common, batch=batch, profile=profile)
        choice = Choice(
            rule=rule,
            gates=gates_of(self.stages.options),
            candidates=tuple(sorted((*(a.candidate for a in attempts), *self.skipped), key=_risk)),
            eager=eager,
            notes=notes_on_eager(winner.candidate, eager),
            timed_on=gpus[0].name if is_timed else None,
            seconds=round(time.monotonic() - begun, 2),
            complete=self.complete,
        )
        shipped = next(c for c in choice.candidates if c.outcome == "shipped")
        self.stages.progress.table(COLUMNS, [])
        return Found(winner.made, shipped, choice)

    def _layer_times(self, one: Attempt) -> Mapping[str, float]:
        """By TensorRT's profiler, at the usual batch, remembered; none, with a note, where its process fails."""
        assert one.made is not None
        made, batch, name = one.made, self.common.usual_batch, one.candidate.name

        def make(folder: Path) -> None:
            with self.stages.progress.stage("profile", f"the layers of {name}"):
                plan = plan_file(self.stages, self.common, name, made, batch)
                found = layer_times_apart(plan, self.common.reference.at(batch)[0])
            (folder / REPORT).write_bytes(to_json(found))

        key = {
            "plan": [made.plan.files[PLAN], made.way.precision.tf32],
            "batch": batch,
            "reference": self.common.original.files,
            **self.stages.part("family", "gpu", "versions"),
        }
        try:
            entry = self.stages.run("profile", key, make, of=name)
        except DeviceError as error:
            self.stages.progress.note(f"the layers of {name} were not profiled: {error.why}")
            return {}
        return from_json(entry.read(REPORT), LayerMilliseconds, what="the layers' times").milliseconds

    def _outcomes(self, winner: Attempt, batch: int, estimates: Mapping[str, float]) -> list[Attempt]:
        found = []
        for one in sorted(self.attempts, key=lambda a: risk(a.way)):
            candidate = one.candidate
            if one.way == winner.way:
                candidate = msgspec.structs.replace(winner.candidate, outcome="shipped")
            elif candidate.outcome == "passed":
                reason = why_not(one, winner, batch=batch, estimates=dict(estimates))
                candidate = msgspec.structs.replace(candidate, reason=reason)
            found.append(msgspec.structs.replace(one, candidate=candidate))
        return found

    def _tried(self, one: Attempt) -> None:
        self.attempts.append(one)
        c = one.candidate
        self.stages.progress.note(f"{c.name}: {c.outcome}" + (f", {c.reason}" if c.reason else ""))
        rows = candidate_rows([*(a.candidate for a in self.attempts), *self.skipped])
        self.stages.progress.table(COLUMNS, rows)

    def _cannot(self, way: Way) -> str:
        """Why a plain candidate cannot be tried, whatever the time; empty where it can."""
        if way.precision.value == "tf32" and not list_gpus():
            return "without a GPU nothing here multiplies in TF32"
        if way.precision.quantized:
            options = self.stages.options
            given = self.stages.given
            calib = options.calib_dir or options.eval_dir or (None if given is None else given.origin)
            try:
                check_quantized(way.precision, scope=options.scope, calib=calib, targets=options.targets)
            except (SpecError, DeviceError) as error:
                return f"{error.what}: {error.why}"
        return ""

    def _ranges(self) -> Mapping[str, float]:
        """Of the tensors that may be quantized."""
        if self.stages.options.scope == "weights":
            return {}
        return calibrated(self.stages, self.common.fast, self.common.model)[1].ranges

    def _is_late(self) -> bool:
        return time.monotonic() > self.until

    def _out_of_time(self) -> str:
        self.complete = False
        return "the time budget was used up; the same command goes on from here"

    def _estimates(self, passed: list[Attempt]) -> dict[str, float]:
        batch = self.common.usual_batch
        return {
            a.candidate.name: estimated_ms(a.made.typed.folder / GRAPH, batch=batch, tf32=a.way.precision.tf32)
            for a in passed
            if a.made is not None
        }


def _risk(candidate: Candidate) -> tuple[int, int]:
    return risk(Way(precision=candidate.precision, kept=candidate.kept))


def notes_on_eager(shipped: Candidate, eager: tuple[Latency, ...]) -> tuple[str, ...]:
    """At which batches eager PyTorch is as fast, if at any."""
    found = []
    for theirs in eager:
        ours = latency_at(shipped, theirs.batch)
        if ours is not None and ours.high >= theirs.low:
            found.append(
                f"{shipped.name} is not faster than eager PyTorch at batch {theirs.batch}: {ours.ms:.4g} ms against "
                f"{theirs.ms:.4g}"
            )
    return tuple(found)


def _not_tried(way: Way, why: str) -> Candidate:
    return Candidate(name=way.name, precision=way.precision, reason=why)


def _nothing_passed(attempts: list[Attempt], skipped: list[Candidate]) -> GateError:
    tried = [a.candidate for a in attempts]
    left = [c.name for c in skipped]
    return GateError(
        f"no bundle: none of {len(tried)} candidates passed every gate",
        why="; ".join(f"{c.name}: {c.reason or 'it passed, and may not be shipped unmeasured'}" for c in tried),
        do=f"give it more time: not tried yet: {', '.join(left)}" if left else "loosen the gates, or mend the model",
        evidence=as_plain((*tried, *skipped)),
    )
