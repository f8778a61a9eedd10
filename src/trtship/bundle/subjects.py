"""What of a bundle is checked, each opened as it is read back from disk, and the checks of one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from trtship.bundle.bundle import Bundle
from trtship.bundle.graph_files import copy_graph, graph_session
from trtship.bundle.runtime import open_session
from trtship.bundle.top1 import Originals, top1_verdict
from trtship.errors import DependencyError, GraphError, MachineError
from trtship.files import temporary_folder
from trtship.passes import emulate_low
from trtship.progress import Progress
from trtship.session.base import Session
from trtship.session.onnxruntime import OnnxRuntimeSession
from trtship.spec import Precision, ShapeRange, batch_range
from trtship.verify import Bound, Picture, Probe, Verdict, all_probes, attack, compare, not_run
from trtship.verify.compare import ON_CPU, ON_GPU
from trtship.verify.gates import Gates
from trtship.verify.sizes import Allowed, any_size
from trtship.verify.verdict import COSINE, REL_L2, REL_L2_FP64, TOP1_DROP, State

FEW = 3
"""Rows that the probes of a graph take: a first, a middle and a last one. Only kernels care for more."""


CHECKS = "every size"
"""In the keys of stages that remember verdicts: what earlier versions remembered was checked at fewer sizes."""
EXACT = "graph fp32"
"""The subject that bundles of one model in several precisions have in common."""


class Subject(msgspec.Struct, frozen=True):
    """`name` as in verdicts, how to `open` it (more than once), and the batches to compare and to probe it at, with all
    other sizes as usual. At the other sizes that the bundle's reference has, it is compared and probed at some."""

    name: str
    open: Callable[[], Session]
    batches: tuple[int, ...]
    probed: tuple[int, ...]
    is_plan: bool

    @property
    def most(self) -> int:
        """Elements of the inputs of one run at other sizes than the usual ones."""
        return ON_GPU if self.is_plan else ON_CPU


@contextmanager
def subjects_of(
    bundle: Bundle, *, family: str | None, device: int, progress: Progress
) -> Iterator[tuple[Subject, ...]]:
    """The fp32 graph, the graph in the bundle's precision, and the plan."""
    m = bundle.manifest
    limits = batch_range(m.inputs, m.ranges)
    usual = limits.sizes_to_check
    few = tuple(sorted({limits.min, min(max(FEW, limits.min), limits.max)}))

    def plan() -> Session:
        """The bundle's own; a rebuilt one would say nothing about it."""
        return open_session(
            bundle, runtime="tensorrt", family=family, device=device, rebuild=False, progress=progress
        ).session

    with temporary_folder() as folder:
        found = [Subject(EXACT, lambda: graph_session(bundle, m.graph), usual, few, False)]
        if m.precision_graph != m.graph:
            low = f"graph {m.precision.value}"
            found.append(Subject(low, lambda: _emulated(bundle, folder), usual, few, False))
        every = tuple(sorted({*usual, *_of_each_profile(limits, m.profiles)}))
        found.append(Subject("plan", plan, every, tuple(sorted({limits.min, limits.opt, limits.max})), True))
        yield tuple(found)


def _of_each_profile(limits: ShapeRange, single: Sequence[int]) -> set[int]:
    """The batches that have kernels of their own; and for the profile of all others its largest, and its largest odd
    one, which none of these has."""
    own = set(single)

    def largest(wanted: Callable[[int], bool]) -> tuple[int, ...]:
        others = (n for n in range(limits.max, limits.min - 1, -1) if n not in own and wanted(n))
        return tuple(itertools.islice(others, 1))

    return {*(n for n in single if n in limits), *largest(lambda n: True), *largest(lambda n: n % 2 == 1)}


def _emulated(bundle: Bundle, folder: Path) -> Session:
    """The strongly typed graph through onnxruntime, with every rounding that TensorRT may do: an fp32 graph that rounds
    each tensor stands in for it, since onnxruntime itself leaves most of them out. `runtime` says so."""
    stand_in = folder / "emulated.onnx"
    if not stand_in.exists():
        emulate_low(copy_graph(bundle, bundle.manifest.precision_graph, folder), stand_in)
    session = OnnxRuntimeSession(stand_in)
    low = bundle.manifest.precision.graph_dtype
    session.runtime += f", {low} emulated: every tensor rounded to it after an fp32 kernel"
    return session


class Checks(msgspec.Struct, frozen=True):
    """What is asked of every subject. `pictures` and `originals` are None where there are none; `allowed` are the
    model's own rules on its sizes: what they refuse is not run."""

    bundle: Bundle
    gates: Gates
    fp64: bool
    originals: Originals | None
    pictures: list[Picture] | None
    progress: Progress
    allowed: Allowed = any_size

    def of(self, subject: Subject) -> tuple[Verdict, ...]:
        """One verdict for each gate and probe."""
        try:
            session = subject.open()
        except (MachineError, GraphError) as error:
            # a machine that cannot open it says nothing about it; a graph that nothing can open is no model's
            state: State = "not run" if isinstance(error, MachineError) else "failed"
            reason = f"{error.what}: {error.why}" if error.why else error.what
            if isinstance(error, DependencyError):
                reason += f"; {error.do}"
            gates = (*self._gates(), *(probe.name for probe in _probes_of(subject, self.bundle)))
            return tuple(Verdict(subject=subject.name, gate=g, state=state, reason=reason) for g in gates)
        with session, self.progress.stage(f"verify {subject.name}", f"on {session.runtime}"):
            return (
                *self._comparisons(subject, session),
                *self._top1(subject, session),
                *self._probes(subject, session),
            )

    def standing(self, subject: Subject, known: Sequence[Verdict]) -> tuple[Verdict, ...]:
        """Those of `known` that say all that `of` would say of the fp32 graph; none where one did not pass."""
        own = tuple(v for v in known if v.subject == subject.name == EXACT)
        bounds = [v.bound for v in own if v.gate == REL_L2 and v.bound is not None]
        asked = {*self._gates(), *(probe.name for probe in _probes_of(subject, self.bundle))}
        whole = set(self._gates()) <= {v.gate for v in own} <= asked
        passed = all(v.state == "passed" or (v.gate == TOP1_DROP and self.pictures is None) for v in own)
        return own if bounds and whole and passed and all(map(self._bound(subject).covers, bounds)) else ()

    def _gates(self) -> tuple[str, ...]:
        asked = {
            REL_L2: True,
            COSINE: self.gates.min_cosine is not None,
            REL_L2_FP64: self.fp64,
            TOP1_DROP: self._wants_top1(),
        }
        return tuple(gate for gate, wanted in asked.items() if wanted)

    def _wants_top1(self) -> bool:
        return self.pictures is not None or self.originals is not None

    def _bound(self, subject: Subject) -> Bound:
        m = self.bundle.manifest
        loosen = subject.name != EXACT or m.precision is Precision.FP32
        return self.gates.bound(m.bounds[subject.name], loosen=loosen)

    def _comparisons(self, subject: Subject, session: Session) -> Iterator[Verdict]:
        reference, bound = self.bundle.reference(), self._bound(subject)
        compared = compare(
            session,
            reference,
            subject=subject.name,
            batches=subject.batches,
            bound=bound,
            ranges=self.bundle.manifest.ranges,
            allowed=self.allowed,
            most=subject.most,
            progress=self.progress,
        )
        yield compared
        cosine = self.gates.cosine(compared)
        if cosine is not None:
            yield cosine
        if not self.fp64:
            return
        if reference.exact is None:
            reason = "the bundle has no fp64 outputs: its original could not run in fp64, or it was made before"
            yield not_run(subject.name, REL_L2_FP64, reason)
            return
        yield compare(
            session,
            reference.in_fp64(),
            subject=subject.name,
            batches=subject.batches,
            bound=bound,
            gate=REL_L2_FP64,
            ranges=self.bundle.manifest.ranges,
            allowed=self.allowed,
            most=subject.most,
            progress=self.progress,
        )

    def _top1(self, subject: Subject, session: Session) -> Iterator[Verdict]:
        if self._wants_top1():
            yield top1_verdict(
                session,
                self.bundle,
                subject=subject.name,
                pictures=self.pictures,
                originals=self.originals,
                progress=self.progress,
            )

    def _probes(self, subject: Subject, session: Session) -> tuple[Verdict, ...]:
        return attack(
            subject.open,
            self.bundle.reference(),
            subject=subject.name,
            ranges=self.bundle.manifest.ranges,
            bound=self._bound(subject),
            session=session,
            batches=subject.probed,
            probes=_probes_of(subject, self.bundle),
            allowed=self.allowed,
            most=subject.most,
            progress=self.progress,
        )


def _probes_of(subject: Subject, bundle: Bundle) -> tuple[Probe, ...]:
    sizes = bool(bundle.manifest.reference_sizes)
    found = [probe for probe in all_probes() if subject.is_plan or not probe.of_memory]
    return tuple(probe for probe in found if sizes or not probe.of_sizes)
