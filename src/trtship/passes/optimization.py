"""Run the passes that make a graph faster, and keep of each only what proves itself on the graph at hand."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trtship.graphs import EXTERNAL_OVER, load_graph, save_graph
from trtship.passes.frozen_batch import FrozenBatch
from trtship.passes.patch_embedding import PatchEmbedding
from trtship.passes.proof import Reference
from trtship.passes.rewrite import NearMiss, Rewrite, RewriteReport
from trtship.passes.thaw import TRACED, ThawReport, thaw_batch
from trtship.passes.windows_into_heads import WindowsIntoHeads
from trtship.progress import SILENT, Progress
from trtship.spec import Record

ALL: tuple[Rewrite[Any], ...] = (WindowsIntoHeads(), PatchEmbedding())
"""In the order in which they run."""


class PassReport(Record, frozen=True):
    """What one pass did, and whether that was `kept`, and `why` or why not.

    `matches` are the places where its pattern stood, `rewritten` those that it replaced, `near_misses` the others with
    their reasons. `error` is the largest relative L2 against the graph that came in, `bound` what rounding explains;
    both None where nothing was replaced or nothing could be compared. `nodes_after` counts the graph that goes on.
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
    why: str


class OptimizeReport(Record, frozen=True):
    nodes_before: int
    nodes_after: int
    passes: tuple[PassReport, ...]


def optimize(
    source: Path,
    target: Path,
    *,
    passes: Sequence[Rewrite[Any]] = ALL,
    traced: int = TRACED,
    external_over: int = EXTERNAL_OVER,
    progress: Progress = SILENT,
) -> OptimizeReport:
    """Write `source` to `target` with every pass that holds its promise; one that fails is rolled back and reported.

    A batch that is frozen at `traced` is made dynamic first: without that there is nothing to prove the others by.
    Raises GraphError when `source` is no valid graph, does not run, or has a frozen batch that cannot be repaired;
    OutputError when `target` cannot be written.
    """
    nodes = len(load_graph(source).graph)
    with tempfile.TemporaryDirectory() as folder:
        current = Path(folder) / "thawed.onnx"
        thawed = thaw_batch(source, current, traced=traced, external_over=external_over, progress=progress)
        reports = [_thaw_report(thawed, nodes, len(load_graph(current).graph))]
        with progress.stage("optimize", f"{nodes} nodes"):
            reference = Reference(current)
            for index, one in enumerate(passes):
                progress.step(index / len(passes), one.name)
                draft = Path(folder) / f"{index}.onnx"
                report = _tried(one, current, draft, reference, external_over)
                current = draft if report.kept else current
                reports.append(report)
        for report in reports:
            if not report.kept and report.rewritten:
                progress.note(f"{report.name} was rolled back: {report.why}")
        save_graph(load_graph(current), target, external_over=external_over)
    return OptimizeReport(nodes_before=nodes, nodes_after=reports[-1].nodes_after, passes=tuple(reports))


def _thaw_report(thawed: ThawReport, before: int, after: int) -> PassReport:
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
        why=f"rows are the same alone and in a batch of {thawed.traced + 1}" if count else "nothing matched",
    )


def _tried(one: Rewrite[Any], current: Path, draft: Path, reference: Reference, external_over: int) -> PassReport:
    """Run a pass on `current`; `draft` is its result where that was kept."""
    nodes = len(load_graph(current).graph)
    done = RewriteReport(matches=0, rewritten=0, near_misses=(), nodes_before=nodes, nodes_after=nodes)
    try:
        done = one.apply(current, draft, external_over=external_over)
        if not done.rewritten:
            return _report(one, done, kept=False, why="near misses only" if done.matches else "nothing matched")
        verdict = one.prove(reference, draft)
    except Exception as fault:  # whatever goes wrong inside a pass, the graph that came in is still good
        return _report(one, done, kept=False, why=f"it failed: {type(fault).__name__}: {str(fault).splitlines()[0]}")
    return _report(one, done, kept=verdict.same, why=verdict.why, error=verdict.error, bound=verdict.bound)


def _report(
    one: Rewrite[Any],
    done: RewriteReport,
    *,
    kept: bool,
    why: str,
    error: float | None = None,
    bound: float | None = None,
) -> PassReport:
    return PassReport(
        name=one.name,
        matches=done.matches,
        rewritten=done.rewritten,
        near_misses=done.near_misses,
        nodes_before=done.nodes_before,
        nodes_after=done.nodes_after if kept else done.nodes_before,
        error=error,
        bound=bound,
        kept=kept,
        why=why,
    )
