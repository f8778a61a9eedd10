"""A graph before `trtship verify`'s own checks, and before `trtship debug`'s search."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import onnx_ir as ir

from trtship.bundle import Bundle
from trtship.bundle.debug_cases import cases_of
from trtship.bundle.subjects import Checks, Subject
from trtship.family import Family
from trtship.passes.emulate import Emulate
from trtship.progress import SILENT
from trtship.session.base import Session
from trtship.session.onnxruntime import OnnxRuntimeSession
from trtship.spec import Precision, TensorSpec, batch_range
from trtship.verify import Verdict
from trtship.verify.locate import Located, Search
from trtship.verify.locate_graph import copy_of, typed
from trtship.verify.locate_runs import GraphRuns, PlanRuns, Suspect

Opens = Callable[[], Session]
Specs = tuple[TensorSpec, ...]


class Judged:
    """A bundle, whose graph in its plan's precision is edited and judged."""

    def __init__(self, folder: Path) -> None:
        self.bundle = Bundle.open(folder)
        self.precision: Precision = self.bundle.manifest.precision

    @cached_property
    def original(self) -> ir.Model:
        """The fp32 graph."""
        return typed(self.bundle.path(self.bundle.manifest.graph))

    def graph(self) -> ir.Model:
        """The graph that the plan is built from, to be edited."""
        return typed(self.bundle.path(self.bundle.manifest.precision_graph))

    def verdicts(self, opens: Opens, *, is_plan: bool = False) -> tuple[Verdict, ...]:
        """What `trtship verify` says of what `opens` opens, in the place of the bundle's graph, or of its plan."""
        m = self.bundle.manifest
        limits = batch_range(m.inputs, m.ranges)
        subject = Subject(
            "plan" if is_plan else f"graph {self.precision.value}",
            opens,
            limits.sizes_to_check,
            tuple(sorted({limits.min, limits.opt, limits.max})),
            is_plan,
        )
        checks = Checks(bundle=self.bundle, gates=m.gates, fp64=False, originals=None, pictures=None, progress=SILENT)
        return checks.of(subject)

    def locate(self, model: ir.Model) -> Located | None:
        """What the search finds on the first inputs on which the graph is wrong."""
        return self.locate_by(GraphRuns(model, self.precision))

    def locate_in_plan(self, model: ir.Model, family: Family, *, inputs: Specs, outputs: Specs) -> Located | None:
        """The same of its plan. Needs a GPU."""
        ranges = self.bundle.manifest.ranges
        runs = PlanRuns(model, self.precision, family=family, inputs=inputs, outputs=outputs, ranges=ranges)
        return self.locate_by(runs)

    def locate_by(self, suspect: Suspect) -> Located | None:
        """The same of any suspect."""
        searches = (Search(suspect, self.original, case.feeds) for case in cases_of(self.bundle))
        return next((found for search in searches if (found := search.locate()) is not None), None)


def opener(model: ir.Model) -> Opens:
    """Opens sessions that run the graph with every tensor rounded to its type."""
    data = ir.to_proto(Emulate().call(copy_of(model)).model).SerializeToString()
    return lambda: OnnxRuntimeSession(data)


def failed(verdicts: tuple[Verdict, ...]) -> set[str]:
    return {verdict.gate for verdict in verdicts if verdict.state == "failed"}
