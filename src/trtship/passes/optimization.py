"""Run the passes that make a graph faster, and keep of each only what proves itself on the graph at hand."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtship.errors import Cancelled, MachineError, OutputError
from trtship.files import draft_beside, writing
from trtship.graphs import EXTERNAL_OVER, load_graph, save_graph
from trtship.passes.frozen_batch import FrozenBatch
from trtship.passes.proof import Reference
from trtship.passes.registry import all_passes
from trtship.passes.rewrite import NearMiss, Rewrite, RewriteReport
from trtship.passes.thaw import TRACED, ThawReport
from trtship.passes.thaw_unknown import thaw
from trtship.progress import SILENT, Progress
from trtship.spec import Record

if TYPE_CHECKING:
    import onnx_ir

NOT_THE_PASS = (OutputError, MachineError, Cancelled)
"""What may go wrong while a pass runs, and says nothing about it."""


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


def optimize(
    source: Path,
    target: Path,
    *,
    passes: Sequence[Rewrite[Any]] | None = None,
    thaws: bool = True,
    traced: int | None = TRACED,
    sizes: Sequence[Mapping[str, int]] | None = None,
    external_over: int = EXTERNAL_OVER,
    progress: Progress = SILENT,
) -> OptimizeReport:
    """Write `source` to `target` with every pass that holds its promise; one that fails is rolled back and reported.

    `passes` are by default all that run unasked; `sizes` are those to prove them at (default: every dynamic size 1, 2
    and 3). With `thaws`, a batch that is frozen at `traced` is made dynamic first, without which there is nothing to
    prove the others by; None is for a graph of which nobody knows (`trtship.passes.thaw_unknown`).

    Raises GraphError when `source` is no valid graph, does not run where something was rewritten, or has a frozen batch
    that cannot be repaired; OutputError when `target` cannot be written.
    """
    chosen = all_passes() if passes is None else passes
    with draft_beside(target) as folder:
        work = _Work(source, folder, target.name, sizes, external_over)
        nodes = work.nodes
        reports = [work.thaw(traced, progress)] if thaws else []
        with progress.stage("optimize", f"{nodes} nodes"):
            for index, one in enumerate(chosen):
                progress.step(index / len(chosen), one.name)
                reports.append(work.run(one))
        for report in reports:
            if report.rolled_back:
                progress.note(f"{report.name} was rolled back: {report.why}")
        work.finish(target)
    nodes_after = reports[-1].nodes_after if reports else nodes
    return OptimizeReport(nodes_before=nodes, nodes_after=nodes_after, passes=tuple(reports), summary=_summary(reports))


def _summary(reports: Sequence[PassReport]) -> str:
    done = [f"{report.rewritten} {report.name}" for report in reports if report.kept]
    undone = [f"{report.name} rolled back" for report in reports if report.rolled_back]
    return ", ".join([*done, *undone]) or "nothing to rewrite"


class _Work:
    """The graph as it is now, at `current`, in a folder of drafts; `source` itself until something was kept."""

    _model: onnx_ir.Model | None = None
    """The graph at `current`, where it is at hand and no pass has edited it since."""

    def __init__(
        self, source: Path, folder: Path, name: str, sizes: Sequence[Mapping[str, int]] | None, external_over: int
    ) -> None:
        self.source = self.current = source
        self._folder, self._name, self._sizes, self._over = folder, name, sizes, external_over

    @cached_property
    def reference(self) -> Reference:
        """Of the graph as it is when something is to be proved for the first time."""
        return Reference(self.current, sizes=self._sizes)

    @property
    def nodes(self) -> int:
        if self._model is None:
            self._model = load_graph(self.current)
        return len(self._model.graph)

    def thaw(self, traced: int | None, progress: Progress) -> PassReport:
        draft, nodes = self._draft("thawed"), self.nodes
        report = thaw(self.source, draft, traced=traced, external_over=self._over, progress=progress)
        if report.repaired:
            self._keep(draft, None)
        return _thaw_report(report, nodes, self.nodes)

    def run(self, one: Rewrite[Any]) -> PassReport:
        """Run a pass on the graph as it is, and keep its result if it proves to be the same."""
        draft = self._draft(one.name)
        nodes, model = self.nodes, self._model
        assert model is not None
        self._model = None  # from here on it may be half rewritten
        done = RewriteReport(matches=0, rewritten=0, near_misses=(), nodes_before=nodes, nodes_after=nodes)
        try:
            result = one(model)
            done = result.report
            if not done.rewritten:
                return _report(one, done, why="near misses only" if done.matches else "nothing matched")
            files = save_graph(result.model, draft, external_over=self._over)
        except NOT_THE_PASS:
            raise
        except Exception as fault:  # whatever goes wrong inside a pass, the graph that came in is still good
            return _report(one, done, rolled_back=True, why=_fault(fault))
        reference = self.reference  # what it raises is the source's own fault
        try:
            verdict = one.prove(reference, draft)
        except NOT_THE_PASS:
            raise
        except Exception as fault:
            return _report(one, done, rolled_back=True, why=_fault(fault))
        if verdict.same:
            self._keep(draft, result.model if len(files) == 1 else None)  # weights beside a draft go with it
        return _report(
            one,
            done,
            kept=verdict.same,
            rolled_back=not verdict.same,
            why=verdict.why,
            error=verdict.error,
            bound=verdict.bound,
        )

    def finish(self, target: Path) -> None:
        """Put what is there in `target`'s place; the external data first."""
        if self.current == self.source:
            save_graph(load_graph(self.source), target, external_over=self._over)
            return
        with writing(target):
            for file in sorted(self.current.parent.iterdir(), key=lambda path: path.name == target.name):
                os.replace(file, target.parent / file.name)

    def _draft(self, name: str) -> Path:
        """A name of its own folder, and the target's name: a graph refers to its external data by name."""
        return self._folder / name / self._name

    def _keep(self, draft: Path, model: onnx_ir.Model | None) -> None:
        if self.current != self.source:
            shutil.rmtree(self.current.parent)
        self.current, self._model = draft, model


def _fault(fault: Exception) -> str:
    lines = str(fault).strip().splitlines()
    return f"it failed: {type(fault).__name__}" + (f": {lines[0]}" if lines else "")


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
        rolled_back=False,
        why=f"rows are the same alone and in a batch of {thawed.traced + 1}" if count else "nothing matched",
    )


def _report(
    one: Rewrite[Any],
    done: RewriteReport,
    *,
    why: str,
    kept: bool = False,
    rolled_back: bool = False,
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
        rolled_back=rolled_back,
        why=why,
    )
