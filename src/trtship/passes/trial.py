"""A graph on its way through the passes: it goes on with what proved to be the same."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from trtship.errors import Cancelled, MachineError, OutputError
from trtship.files import writing
from trtship.graphs import load_graph, save_graph
from trtship.passes.pass_report import (
    PassReport,
    report_of_fault,
    report_of_nothing,
    report_of_proof,
    report_of_thaw,
)
from trtship.passes.proof import Reference
from trtship.passes.rewrite import Rewrite, RewriteReport
from trtship.passes.thaw_unknown import thaw
from trtship.progress import Progress

if TYPE_CHECKING:
    import onnx_ir

NOT_THE_PASS = (OutputError, MachineError, Cancelled)
"""What may go wrong while a pass runs, and says nothing about it."""


class Trial:
    """The graph as it is now, at `current`, in a `folder` of drafts; `source` itself until something was kept.

    `name` is what the result will be called, `sizes` are those to prove it at.
    """

    _model: onnx_ir.Model | None = None
    """The graph at `current`, where it is at hand and no pass has edited it since."""

    def __init__(
        self, source: Path, folder: Path, name: str, sizes: Sequence[Mapping[str, int]] | None, external_over: int
    ) -> None:
        self.source = self.current = source
        self._folder, self._name, self._sizes, self._over = folder, name, sizes, external_over

    @cached_property
    def reference(self) -> Reference:
        """Of the graph as it is when something is to be proved for the first time. Raises GraphError."""
        return Reference(self.current, sizes=self._sizes)

    @property
    def nodes(self) -> int:
        if self._model is None:
            self._model = load_graph(self.current)
        return len(self._model.graph)

    def thaw(self, traced: int | None, progress: Progress) -> PassReport:
        """Make a frozen batch dynamic. Raises GraphError where it cannot be."""
        draft, nodes = self._draft("thawed"), self.nodes
        report = thaw(self.source, draft, traced=traced, external_over=self._over, progress=progress)
        if report.repaired:
            self._keep(draft, None)
        return report_of_thaw(report, nodes, self.nodes)

    def run(self, one: Rewrite[Any]) -> PassReport:
        """Run a pass on the graph as it is, and keep its result if it proves to be the same."""
        draft, nodes = self._draft(one.name), self.nodes
        done = RewriteReport(matches=0, rewritten=0, near_misses=(), nodes_before=nodes, nodes_after=nodes)
        try:
            result = one(self._taken())
            done = result.report
            if not done.rewritten:
                return report_of_nothing(one, done)
            files = save_graph(result.model, draft, external_over=self._over)
        except NOT_THE_PASS:
            raise
        except Exception as fault:  # whatever goes wrong inside a pass, the graph that came in is still good
            return report_of_fault(one, done, fault)
        reference = self.reference  # what it raises is the source's own fault
        try:
            verdict = one.prove(reference, draft)
        except NOT_THE_PASS:
            raise
        except Exception as fault:
            return report_of_fault(one, done, fault)
        if verdict.same:
            self._keep(draft, result.model if len(files) == 1 else None)  # weights beside a draft go with it
        return report_of_proof(one, done, verdict)

    def run_together(self, passes: Sequence[Rewrite[Any]]) -> list[PassReport] | None:
        """Run all passes and prove what comes of them at once; None, and the graph as it was, where anything is amiss.

        That costs one proof and one file for all; `error` and `bound` are those of the whole.
        """
        if not all(type(one).prove is Rewrite.prove for one in passes):
            return None
        draft = self._draft("together")
        done: list[RewriteReport] = []
        try:
            model = self._taken()
            for one in passes:
                result = one(model)
                model = result.model
                done.append(result.report)
            if any(report.rewritten for report in done):
                save_graph(model, draft, external_over=self._over)
        except NOT_THE_PASS:
            raise
        except Exception:  # which one it was, and why, comes out when each is run by itself
            return None
        if not any(report.rewritten for report in done):
            return [report_of_nothing(one, report) for one, report in zip(passes, done, strict=True)]
        verdict = self.reference.verdict(draft)
        if not verdict.same:
            return None
        self._keep(draft, None)
        verdict = msgspec.structs.replace(verdict, why=f"{verdict.why}, all passes together")
        return [
            report_of_proof(one, report, verdict) if report.rewritten else report_of_nothing(one, report)
            for one, report in zip(passes, done, strict=True)
        ]

    def finish(self, target: Path) -> None:
        """Put what is there in `target`'s place; the external data first."""
        if self.current == self.source:
            save_graph(load_graph(self.source), target, external_over=self._over)
            return
        with writing(target):
            for file in sorted(self.current.parent.iterdir(), key=lambda path: path.name == target.name):
                os.replace(file, target.parent / file.name)

    def _taken(self) -> onnx_ir.Model:
        """The graph as it is now, to be edited."""
        model, self._model = self._model or load_graph(self.current), None
        return model

    def _draft(self, name: str) -> Path:
        """In a folder of its own, under the target's name: a graph refers to its external data by name."""
        return self._folder / name / self._name

    def _keep(self, draft: Path, model: onnx_ir.Model | None) -> None:
        if self.current != self.source:
            shutil.rmtree(self.current.parent)
        self.current, self._model = draft, model
