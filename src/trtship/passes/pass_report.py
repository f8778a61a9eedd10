"""What the passes did to a graph, for people and for the bundle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trtship.passes.frozen_batch import FrozenBatch
from trtship.passes.proof import Verdict
from trtship.passes.rewrite import NearMiss, Rewrite, RewriteReport
from trtship.passes.thaw import ThawReport
from trtship.spec import Record


class PassReport(Record, frozen=True):
    """What one pass did, and whether that was `kept`, and `why` or why not.

    `matches` are the places where its pattern stood, `rewritten` those that it replaced, `near_misses` the others with
    their reasons. `error` is the largest relative L2 against the graph that came in, `bound` what rounding explains;
    both None where nothing was replaced or nothing could be compared. `nodes_after` counts the graph that goes on.
    `rolled_back`: it did something, or tried to, and the graph goes on without.
    """

    name: str
    matches: int
    rewritten: int
    near_misses: tuple[NearMiss, ...]
    nodes_before: int
    nodes_after: int
    error: float | None
    bound: float | None
    kept: bool
    rolled_back: bool
    why: str


class OptimizeReport(Record, frozen=True):
    """`summary` is one line for people: `12 windows into heads, 1 patch embedding`."""

    nodes_before: int
    nodes_after: int
    passes: tuple[PassReport, ...]
    summary: str


def summary_of(reports: Sequence[PassReport]) -> str:
    done = [f"{report.rewritten} {report.name}" for report in reports if report.kept]
    undone = [f"{report.name} rolled back" for report in reports if report.rolled_back]
    return ", ".join([*done, *undone]) or "nothing to rewrite"


def report_of_thaw(thawed: ThawReport, before: int, after: int) -> PassReport:
    """Of the first pass, from `before` nodes to `after`."""
    count = len(thawed.repaired)
    miss = (NearMiss(node="", reason=thawed.doubt),) if thawed.doubt else ()
    return PassReport(
        name=FrozenBatch.name,
        matches=count + len(miss),
        rewritten=count,
        near_misses=miss,
        nodes_before=before,
        nodes_after=after,
        error=thawed.error,
        bound=thawed.bound,
        kept=count > 0,
        rolled_back=False,
        why=f"rows are the same alone and in a batch of {thawed.traced + 1}" if count else "nothing matched",
    )


def report_of_nothing(one: Rewrite[Any], done: RewriteReport) -> PassReport:
    """Of a pass that rewrote nothing."""
    return _report(one, done, why="near misses only" if done.matches else "nothing matched")


def report_of_fault(one: Rewrite[Any], done: RewriteReport, fault: Exception) -> PassReport:
    """Of a pass that crashed, or whose proof did."""
    lines = str(fault).strip().splitlines()
    why = f"it failed: {type(fault).__name__}" + (f": {lines[0]}" if lines else "")
    return _report(one, done, why=why, rolled_back=True)


def report_of_proof(one: Rewrite[Any], done: RewriteReport, verdict: Verdict) -> PassReport:
    """Of a pass whose result was compared."""
    return _report(one, done, why=verdict.why, rolled_back=not verdict.same, verdict=verdict)


def _report(
    one: Rewrite[Any], done: RewriteReport, *, why: str, rolled_back: bool = False, verdict: Verdict | None = None
) -> PassReport:
    kept = verdict is not None and verdict.same
    return PassReport(
        name=one.name,
        matches=done.matches,
        rewritten=done.rewritten,
        near_misses=done.near_misses,
        nodes_before=done.nodes_before,
        nodes_after=done.nodes_after if kept else done.nodes_before,
        error=None if verdict is None else verdict.error,
        bound=None if verdict is None else verdict.bound,
        kept=kept,
        rolled_back=rolled_back,
        why=why,
    )
