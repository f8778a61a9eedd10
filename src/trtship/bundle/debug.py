"""Where a bundle's graph or plan leaves the original: `trtship debug`.

What is in a bundle was made in steps, and each is held against the one before: the fp32 graph against the outputs of
eager PyTorch that the bundle carries, the graph in the plan's precision against the fp32 graph, the plan against the
same. The first that is wrong is searched for the first tensor that is (`trtship.verify.locate`).

Inside PyTorch there is nothing to compare: where the fp32 graph itself is wrong, another graph has to say what is
right, such as a new export. It goes through the passes that the bundle's graph went through, each of which proves
itself, so that the two have the same tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from trtship.bundle.bundle import Bundle
from trtship.bundle.debug_cases import Case, cases_of
from trtship.bundle.given_inputs import given_cases
from trtship.bundle.graph_files import graph_session, private_graphs
from trtship.bundle.room import require_room
from trtship.bundle.runtime import open_session
from trtship.errors import MachineError, OutputError, TrtshipError
from trtship.family import choose_family
from trtship.files import temporary_folder, whole_folder
from trtship.passes import simplify
from trtship.passes.base import interface_of
from trtship.passes.optimization import optimize
from trtship.passes.registry import find_passes
from trtship.progress import SILENT, Progress
from trtship.session.base import Session
from trtship.spec import Precision, Record, ShapeRange, allowed_by, batch_range
from trtship.verify import all_probes, compare
from trtship.verify.attack import attack
from trtship.verify.locate import MEMORY, WIDTH, Located, Search, same_tensors
from trtship.verify.locate_compare import Deviation
from trtship.verify.locate_graph import Lineage, typed
from trtship.verify.locate_report import LOADER, bug_report, loader_script
from trtship.verify.locate_reproduction import Reproduction, read_reproduction, run_reproduction, write_reproduction
from trtship.verify.locate_runs import GraphRuns, PlanRuns, Suspect, run_on

if TYPE_CHECKING:
    import onnx_ir

FP32, PLAN = "graph fp32", "plan"
REPORT = "report.md"


class Finding(Record, frozen=True):
    """What was found of one subject.

    `state` is `right`, `wrong` or `not run`; `case` are the inputs on which it is wrong; `located` is None where it is
    right, or wrong in a way that no tensor shows, which `reason` tells.
    """

    subject: str
    state: Literal["right", "wrong", "not run"]
    runtime: str = ""
    case: str = ""
    reason: str = ""
    located: Located | None = None


class DebugReport(Record, frozen=True):
    """`findings` in the order of the steps; the last is the first that is wrong, where one is. `against` is what was
    taken for right, `reproduction` what was written to `folder`."""

    bundle: str
    against: str
    findings: tuple[Finding, ...]
    folder: str | None = None
    reproduction: Reproduction | None = None

    @property
    def wrong(self) -> Finding | None:
        return next((finding for finding in self.findings if finding.state == "wrong"), None)


def debug_bundle(
    bundle: str | Path | Bundle,
    *,
    reference: str | Path | None = None,
    output: str | Path | None = None,
    inputs: Any = None,
    family: str | None = None,
    device: int = 0,
    width: int = WIDTH,
    memory: int = MEMORY,
    progress: Progress = SILENT,
) -> DebugReport:
    """Find the first tensor at which what is in the bundle leaves the original, and the node to blame.

    `inputs` are real inputs, as `trtship.deploy` takes them, which are looked at before the bundle's own rows.
    `reference` is an fp32 ONNX graph of the same model that is right, for when the bundle's own is not. With `output`,
    a new folder gets the smallest graph that shows the fault, its inputs, and a text for a bug report. One run of the
    subject keeps at most `width` tensors, of at most `memory` bytes together.

    Raises BundleError (and subclasses), GraphError for a reference that is none, OutputError.
    """
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle, progress=progress)
    target = None if output is None else Path(output)
    if target is not None and target.exists():
        raise OutputError(f"{target} exists", why="it is not replaced", do="name a folder that does not exist yet")
    require_room(opened)
    with private_graphs(opened) as graph:
        job = _Job(opened, graph, reference, family, device, width, memory, progress)
        job.given = given_cases(opened, inputs)
        findings: list[Finding] = []
        for step in job.steps():
            findings.append(step())
            if findings[-1].state == "wrong":
                break
        report = DebugReport(bundle=str(opened.folder), against=job.against, findings=tuple(findings))
        if target is None or report.wrong is None or report.wrong.located is None:
            return report
        return job.write(report, report.wrong, target)


class _Job:
    def __init__(
        self,
        bundle: Bundle,
        graph: Callable[[str], Path],
        reference: str | Path | None,
        family: str | None,
        device: int,
        width: int,
        memory: int,
        progress: Progress,
    ) -> None:
        self.bundle, self._path, self.device, self.progress = bundle, graph, device, progress
        self._family, self._width, self._memory = family, width, memory
        m = self.m = bundle.manifest
        self._graph = typed(graph(m.graph))
        self._has_own = reference is None
        self.reference = self._graph if reference is None else self._prepared(Path(reference))
        self.against = f"{bundle.folder / m.graph}" if reference is None else str(reference)
        self.given: tuple[Case, ...] = ()
        self._found: tuple[Search, Callable[[onnx_ir.Model], Suspect]] | None = None

    def steps(self) -> Iterator[Callable[[], Finding]]:
        m = self.m
        yield self._original if self._has_own else lambda: self._of_graph(FP32, m.graph, Precision.FP32)
        if m.precision_graph != m.graph:
            yield lambda: self._of_graph(f"graph {m.precision.value}", m.precision_graph, m.precision)
        yield self._of_plan

    def _original(self) -> Finding:
        """The fp32 graph against eager PyTorch's outputs: `trtship verify`'s checks."""
        m, recorded = self.m, self.bundle.reference()
        batches, bound = batch_range(m.inputs, m.ranges).sizes_to_check, m.bounds[FP32]

        def opens() -> Session:
            return graph_session(self.bundle, m.graph)

        with opens() as session, self.progress.stage("check", FP32):
            compared = compare(
                session,
                recorded,
                subject=FP32,
                batches=batches,
                bound=bound,
                ranges=m.ranges,
                allowed=allowed_by(m.rules),
                progress=self.progress,
            )
            probed = attack(
                opens,
                recorded,
                subject=FP32,
                ranges=m.ranges,
                bound=bound,
                session=session,
                probes=[probe for probe in all_probes() if not probe.of_memory],
                allowed=allowed_by(m.rules),
            )
            verdicts = [compared, *probed]
            runtime = session.runtime
        failed = [f"{v.gate}: {v.reason}" for v in verdicts if v.state == "failed"]
        if not failed:
            return Finding(subject=FP32, state="right", runtime=runtime)
        reason = (
            f"{failed[0]}. The fp32 graph is wrong itself, and the bundle has no other to compare it with, tensor by "
            "tensor: export the model again (trtship export), and name that graph with --reference"
        )
        return Finding(subject=FP32, state="wrong", runtime=runtime, reason=reason)

    def _of_graph(self, subject: str, name: str, precision: Precision) -> Finding:
        model = self._graph if name == self.m.graph else typed(self._path(name))
        suspect = GraphRuns(model, precision)
        with self.progress.stage("search", f"{subject}, {len(model.graph)} nodes"):
            for case in (*self.given, *cases_of(self.bundle)):
                search = self._search(suspect, case)
                located = search.locate()
                if located is not None:
                    self._found = search, lambda part: GraphRuns(part, precision)
                    return _wrong(subject, suspect, case, located)
        return Finding(subject=subject, state="right", runtime=suspect.runtime)

    def _of_plan(self) -> Finding:
        m = self.m
        try:
            own = open_session(
                self.bundle,
                runtime="tensorrt",
                family=self._family,
                device=self.device,
                rebuild=False,
                progress=self.progress,
            ).session
        except MachineError as error:
            return Finding(subject=PLAN, state="not run", reason=f"{error.what}: {error.why}")
        with own, self.progress.stage("search", PLAN):
            suspect = self._plan_runs(typed(self._path(m.precision_graph)), whole=True)
            for case in (*self.given, *cases_of(self.bundle)):
                search = self._search(suspect, case)
                try:
                    if search.is_right(run_on(own, case.feeds)):
                        continue
                except TrtshipError as error:
                    self.progress.note(f"the plan could not run: {error.what}")
                located = search.locate()
                self._found = search, lambda part: self._plan_runs(part, whole=False)
                if located is not None:
                    return _wrong(PLAN, suspect, case, located)
                reason = (
                    "the bundle's plan is wrong, and one built from its graph here is right: it was built from another "
                    "graph, or by another TensorRT; deploy the model again"
                )
                return Finding(subject=PLAN, state="wrong", runtime=own.runtime, case=case.name, reason=reason)
        return Finding(subject=PLAN, state="right", runtime=own.runtime)

    def _plan_runs(self, model: onnx_ir.Model, *, whole: bool) -> PlanRuns:
        """A graph through TensorRT: the bundle's own with its profiles, a part of it at its one shape."""
        m = self.m
        family, _ = choose_family(self._family or m.family, tf32=m.precision.tf32)
        inputs, outputs = (m.plan_inputs, m.plan_outputs) if whole else interface_of(model)
        ranges: dict[str, ShapeRange] = m.ranges if whole else {}
        return PlanRuns(
            model,
            m.precision,
            family=family,
            inputs=inputs,
            outputs=outputs,
            ranges=ranges,
            single=m.profiles if whole else (),
            device=self.device,
            progress=self.progress,
        )

    def _search(self, suspect: Suspect, case: Case) -> Search:
        return Search(
            suspect, self.reference, case.feeds, width=self._width, memory=self._memory, progress=self.progress
        )

    def _prepared(self, path: Path) -> onnx_ir.Model:
        """The user's graph; through the bundle's own passes where it has not got the same tensors."""
        given, ours = typed(path), Lineage(self._graph)
        if 2 * len(same_tensors(ours, Lineage(given))) > len(ours.makers):
            return given
        with temporary_folder() as folder:
            simple, fast = folder / "simple.onnx", folder / "fast.onnx"
            simplify(path, simple, progress=self.progress)
            passes = find_passes(self.m.recipe.get("passes", ()))
            optimize(simple, fast, passes=passes, thaws=False, together=True, progress=self.progress)
            return typed(fast)

    def write(self, report: DebugReport, wrong: Finding, target: Path) -> DebugReport:
        """The reproduction and the text."""
        assert self._found is not None
        assert wrong.located is not None
        search, opens = self._found
        with whole_folder(target) as folder, self.progress.stage("reproduce", wrong.located.node):
            made = write_reproduction(
                folder, search, wrong.located, opens, subject=wrong.subject, family=self._family or self.m.family
            )
            text = bug_report(
                wrong.located,
                made,
                runtime=wrong.runtime,
                case=wrong.case,
                versions=self.m.versions,
                folder=target.name,
                nodes=[search.lineage.named(name) for name in wrong.located.nodes],
            )
            (folder / REPORT).write_text(text, encoding="utf-8")
            if wrong.subject == PLAN:
                (folder / LOADER).write_text(loader_script(made.reads), encoding="utf-8")
        return msgspec.structs.replace(report, folder=str(target), reproduction=made)


def _wrong(subject: str, suspect: Suspect, case: Case, located: Located) -> Finding:
    return Finding(subject=subject, state="wrong", runtime=suspect.runtime, case=case.name, located=located)


def reproduce(folder: str | Path, *, device: int = 0, progress: Progress = SILENT) -> Deviation | None:
    """Run what `debug_bundle` wrote to a folder again: how far its graph is off, None where it is not.

    Raises BundleError for another folder, MachineError where it needs a GPU or a TensorRT that is not here.
    """
    record, suspect, reference, feeds = read_reproduction(Path(folder))
    if record.subject != PLAN:
        return run_reproduction(GraphRuns(suspect, record.precision), reference, feeds)
    family, _ = choose_family(record.family, tf32=record.precision.tf32)
    inputs, outputs = interface_of(suspect)
    runs = PlanRuns(
        suspect,
        record.precision,
        family=family,
        inputs=inputs,
        outputs=outputs,
        ranges={},
        device=device,
        progress=progress,
    )
    return run_reproduction(runs, reference, feeds)
