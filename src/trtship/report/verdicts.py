"""The verdicts: what came of them altogether, each for itself, and what was not run at all."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from trtship.report.evidence import Evidence
from trtship.report.words import GATES, figure, gate_name, several
from trtship.spec import Precision
from trtship.verify import Verdict
from trtship.verify.sizes import tried_in_words

MAX_SHOWN = 500
"""Verdicts that a page or a table shows; a bundle has about 40."""


class Outcome(msgspec.Struct, frozen=True):
    """`state` is that of the whole: `failed` where a single gate is, `not run` where anything was left out."""

    state: str
    word: str
    sentence: str


class Check(msgspec.Struct, frozen=True):
    """A row of the table. `worst` and `bound` are written as the gate's figures are."""

    gate: str
    state: str
    worst: str
    bound: str
    detail: str


class NotRun(msgspec.Struct, frozen=True):
    """What is not known, in a few words and in full, why, and the command that would tell."""

    brief: str
    what: str
    why: str
    command: str = ""


def outcome_of(verdicts: Sequence[Verdict]) -> Outcome:
    """In words: a check that was not run is never a pass."""
    states = [v.state for v in verdicts]
    passed, failed, left = (states.count(s) for s in ("passed", "failed", "not run"))
    if not verdicts:
        return Outcome("not run", "Not verified", "No check was run.")
    if failed:
        rest = f"{passed} passed" + (f", {left} not run" if left else "")
        return Outcome("failed", "Failed", f"{failed} of {several(len(states), 'check')} failed; {rest}.")
    if left:
        were = "was" if left == 1 else "were"
        done = f"{passed} of {several(len(states), 'check')} passed" if passed else "No check was run"
        return Outcome("not run", "Incomplete", f"{done}, none failed, {left} {were} not run.")
    return Outcome("passed", "Passed", f"All {several(passed, 'check')} passed.")


def checks_by_subject(verdicts: Sequence[Verdict]) -> dict[str, list[Check]]:
    """A row a verdict; the probes of a subject that passed, and of which there is no more to say, in one."""
    found: dict[str, list[Check]] = {}
    for subject in dict.fromkeys(v.subject for v in verdicts):
        own = [v for v in verdicts if v.subject == subject]
        quiet = [v for v in own if v.gate not in GATES and v.state == "passed" and not v.note]
        rows = [_check(v) for v in own if v not in quiet]
        if quiet:
            runtimes = ", ".join(dict.fromkeys(v.runtime for v in quiet if v.runtime))
            names = ", ".join(gate_name(v.gate) for v in quiet) + (f"; on {runtimes}" if runtimes else "")
            rows.append(Check(several(len(quiet), "probe"), "passed", "", "", names))
        found[subject] = rows
    return found


def _check(verdict: Verdict) -> Check:
    measured = verdict.state != "not run" and (verdict.worst is not None or verdict.measures)
    return Check(
        gate=gate_name(verdict.gate),
        state=verdict.state,
        worst=figure(verdict.gate, verdict.worst) if measured else "",
        bound="" if verdict.bound is None else figure(verdict.gate, verdict.held_to),
        detail=_detail(verdict),
    )


def failures_of(verdicts: Sequence[Verdict]) -> list[str]:
    return [f"{v.subject}, {gate_name(v.gate)}: {v.reason}" for v in verdicts if v.state == "failed"]


def _detail(verdict: Verdict) -> str:
    parts = [verdict.reason] if verdict.reason else []
    if verdict.state == "not run":
        return "; ".join([*parts, verdict.note] if verdict.note else parts)
    if any(m.sizes for m in verdict.measures):
        parts.append(f"at {tried_in_words(verdict.measures)}")
    cosines = [m.cosine for m in verdict.measures if m.cosine is not None]
    if cosines:
        parts.append(f"cosine ≥ {min(cosines):.6f}")
    agreements = [m.top1_agreement for m in verdict.measures if m.top1_agreement is not None]
    if agreements:
        parts.append(f"same class in {min(agreements):.0%} of the rows")
    if (e := verdict.evaluation) is not None:
        parts.append(f"top-1 {e.top1:.2f} % against the original's {e.top1_original:.2f} % on {e.pictures} pictures")
    parts += [verdict.note] if verdict.note else []
    parts += [f"on {verdict.runtime}"] if verdict.runtime else []
    return "; ".join(parts)


def bounds_of(verdicts: Sequence[Verdict]) -> list[tuple[str, str, str]]:
    """Subject and gates, the bound, and where it comes from; the gates of a subject that share one together."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for v in verdicts:
        if v.bound is not None:
            value = figure(v.gate, v.bound.value)
            found.setdefault((v.subject, value, v.bound.source), []).append(gate_name(v.gate))
    return [(f"{subject}, {', '.join(gates)}", value, source) for (subject, value, source), gates in found.items()]


def bounded(verdicts: Sequence[Verdict], most: int = MAX_SHOWN) -> tuple[Sequence[Verdict], str]:
    """Return at most `most` verdicts, in their order: those that failed before those that were not run, and these
    before those that passed. And a sentence that tells how many are left out; empty where none is."""
    if len(verdicts) <= most:
        return verdicts, ""
    weight = {"failed": 0, "not run": 1, "passed": 2}
    kept = sorted(sorted(range(len(verdicts)), key=lambda i: weight[verdicts[i].state])[:most])
    left = len(verdicts) - most
    return [
        verdicts[i] for i in kept
    ], f"{most} of {len(verdicts)} checks are shown here, failures first; {left} are left out."


def left_out(evidence: Evidence, name: str, shown: Sequence[Verdict]) -> list[NotRun]:
    """All that is not known of the bundle `name`: of the verdicts that are `shown` those that were not run, by their
    reason, then what nobody asked for or could do."""
    m, choice = evidence.manifest, evidence.choice
    groups: dict[tuple[str, str], list[str]] = {}
    for v in shown:
        if v.state == "not run":
            groups.setdefault((v.subject, v.reason), []).append(gate_name(v.gate))
    found = [
        NotRun(
            f"{subject}: {', '.join(gates) if len(gates) < 3 else several(len(gates), 'check')}",
            f"{subject}: {', '.join(gates)}",
            reason,
            f"trtship verify {name}" + (" --eval DIR" if "top-1 drop" in gates and "--eval" in reason else ""),
        )
        for (subject, reason), gates in groups.items()
    ]
    if not any(v.gate == "top1_drop" for v in m.verdicts):
        found.append(NotRun("top-1", "top-1", "the bundle was made without --eval", "trtship deploy ... --eval DIR"))
    timed = choice is not None and choice.timed_on is not None
    if evidence.bench is None:
        why = "not timed beside other ways to run the model" if timed else "nothing was timed"
        what = "speed against peers" if timed else "speed"
        found.append(NotRun(what, what, why, f"trtship bench {name} --record"))
    if choice is not None:
        found += [
            NotRun(c.name, f"candidate {c.name}", c.reason or "no reason was recorded")
            for c in choice.candidates
            if c.outcome == "not tried"
        ]
    if m.precision.graph_dtype != Precision.FP32.graph_dtype and (evidence.errors is None or evidence.errors.reason):
        why = evidence.errors.reason if evidence.errors else "it was not recorded when the bundle was made"
        found.append(NotRun("error by layer", "error by layer", why))
    return found
