"""Run the passes that make a graph faster, and keep of each only what proves itself on the graph at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trtship.files import draft_beside
from trtship.graphs import EXTERNAL_OVER
from trtship.passes.pass_report import OptimizeReport, PassReport, summary_of
from trtship.passes.registry import all_passes
from trtship.passes.rewrite import Rewrite
from trtship.passes.thaw import TRACED
from trtship.passes.trial import Trial
from trtship.progress import SILENT, Progress


def optimize(
    source: Path,
    target: Path,
    *,
    passes: Sequence[Rewrite[Any]] | None = None,
    thaws: bool = True,
    traced: int | None = TRACED,
    sizes: Sequence[Mapping[str, int]] | None = None,
    together: bool = False,
    external_over: int = EXTERNAL_OVER,
    progress: Progress = SILENT,
) -> OptimizeReport:
    """Write `source` to `target` with every pass that holds its promise; one that fails is rolled back and reported.

    `passes` are by default all that run unasked; `sizes` are those to prove them at (default: every dynamic size 1, 2
    and 3). With `thaws`, a batch that is frozen at `traced` is made dynamic first, without which there is nothing to
    prove the others by; None is for a graph of which nobody knows (`trtship.passes.thaw_unknown`). With `together`,
    what all passes made is proved at once, and each by itself only where that fails.

    Raises GraphError when `source` is no valid graph, does not run where something was rewritten, or has a frozen batch
    that cannot be repaired; OutputError when `target` cannot be written.
    """
    chosen = all_passes() if passes is None else passes
    with draft_beside(target) as folder:
        trial = Trial(source, folder, target.name, sizes, external_over)
        nodes = trial.nodes
        reports = [trial.thaw(traced, progress)] if thaws else []
        with progress.stage("optimize", f"{nodes} nodes"):
            at_once = trial.run_together(chosen) if together else None
            reports += _one_by_one(trial, chosen, progress) if at_once is None else at_once
        for report in reports:
            if report.rolled_back:
                progress.note(f"{report.name} was rolled back: {report.why}")
        trial.finish(target)
    nodes_after = reports[-1].nodes_after if reports else nodes
    return OptimizeReport(
        nodes_before=nodes, nodes_after=nodes_after, passes=tuple(reports), summary=summary_of(reports)
    )


def _one_by_one(trial: Trial, passes: Sequence[Rewrite[Any]], progress: Progress) -> list[PassReport]:
    reports = []
    for index, one in enumerate(passes):
        progress.step(index / len(passes), one.name)
        reports.append(trial.run(one))
    return reports
