"""Which runtime a bundle gets on this machine: its plan, a rebuilt plan, or onnxruntime; and why."""

from __future__ import annotations

import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from trtship.bundle.bundle import Bundle
from trtship.bundle.graph_files import graph_source, private_graphs
from trtship.cache import Cache
from trtship.errors import DeviceError, GpuFaultError, GpuMemoryError, MachineError
from trtship.family import Family, check_family, choose_family, installed_families
from trtship.gpu import Gpu, list_gpus
from trtship.progress import SILENT, Progress
from trtship.session.base import Session
from trtship.session.cuda import Cuda
from trtship.session.onnxruntime import OnnxRuntimeSession
from trtship.session.tensorrt import TensorRTSession
from trtship.terminal import shown

Runtime = Literal["auto", "tensorrt", "onnxruntime"]


class Chosen(msgspec.Struct, frozen=True):
    """An open session, why it was chosen, and whether it runs the bundle's own plan."""

    session: Session
    why: str
    own_plan: bool

    @property
    def is_plan(self) -> bool:
        """Whether TensorRT runs it, the bundle's own plan or a rebuilt one."""
        return isinstance(self.session, TensorRTSession)


class PlanOptions(msgspec.Struct, frozen=True):
    """How `TensorRTSession` runs a plan."""

    max_contexts: Annotated[int, msgspec.Meta(ge=1)] = 2
    memory_limit: Annotated[float, msgspec.Meta(gt=0)] | None = None
    graphs: Annotated[int, msgspec.Meta(ge=0)] = 64


_USUAL = PlanOptions()


def open_session(
    bundle: Bundle,
    *,
    runtime: Runtime = "auto",
    family: str | None = None,
    device: int = 0,
    rebuild: bool = True,
    options: PlanOptions = _USUAL,
    progress: Progress = SILENT,
) -> Chosen:
    """The best session that this machine can run: TensorRT where there is a GPU, else onnxruntime on the fp32 graph.

    What runs on the CPU though there is a GPU, and nobody asked for onnxruntime, and a plan that is rebuilt, are told:
    by `progress`, or a RuntimeWarning where that is silent.

    Raises MachineError where the asked `runtime` or `device` is not possible here, or where `rebuild=False` and the
    plan does not fit; GpuMemoryError and GpuFaultError, whatever was asked for; SpecError for an unknown `family`.
    """
    if family is not None:
        check_family(family)
    gpus = list_gpus()
    opening = _Opening(bundle, family, device, gpus, options, progress)
    if runtime == "tensorrt":
        return _on_tensorrt(opening, rebuild)
    if gpus or device:
        _check_device(device, gpus)
    if runtime == "onnxruntime":
        return Chosen(_graph_session(opening), "as asked", own_plan=False)
    return _best(opening, rebuild)


class _Opening(msgspec.Struct, frozen=True):
    """What is to be opened, and where."""

    bundle: Bundle
    family: str | None
    device: int
    gpus: tuple[Gpu, ...]
    options: PlanOptions
    progress: Progress


def start_cuda(device: int) -> None:
    """Make CUDA start in a thread, which takes a third of a second, while the caller checks hashes. What goes wrong is
    told by whoever uses it next."""

    def start() -> None:
        with suppress(MachineError):
            if installed_families() and 0 <= device < len(list_gpus()):
                Cuda(device)

    threading.Thread(target=start, name="trtship-cuda").start()


def _check_device(device: int, gpus: tuple[Gpu, ...]) -> None:
    if not 0 <= device < len(gpus):
        raise DeviceError(
            f"there is no GPU {device} here",
            why=f"{len(gpus)} NVIDIA GPU(s) found, counted from 0",
            do="trtship doctor lists them",
        )


def _tell(progress: Progress, text: str) -> None:
    """A note, or a RuntimeWarning where nobody listens to notes."""
    if progress is SILENT:
        warnings.warn(shown(text), RuntimeWarning, stacklevel=2)
    else:
        progress.note(text)


def _in_short(error: MachineError) -> str:
    return f"{error.what}: {error.why}" if error.why else error.what


def _graph_session(opening: _Opening) -> OnnxRuntimeSession:
    """A GPU that was named is not replaced by the CPU."""
    m = opening.bundle.manifest
    # fp32, unless the plan takes or gives another type: then the graph that does so too
    same = (m.inputs, m.outputs) == (m.plan_inputs, m.plan_outputs)
    name = m.graph if same else m.precision_graph
    with graph_source(opening.bundle, name) as graph:
        session = OnnxRuntimeSession(
            graph,
            providers="cuda" if opening.device else "auto" if opening.gpus else "cpu",
            device=opening.device,
            memory_limit=opening.options.memory_limit,
            name=str(opening.bundle.folder / name),
        )
    session.rules = m.rules
    return session


def _best(opening: _Opening, rebuild: bool) -> Chosen:
    if not opening.gpus:
        return Chosen(_graph_session(opening), "no NVIDIA GPU here", own_plan=False)
    why = "no TensorRT: pip install 'trtship[rtx]'"
    if installed_families():
        try:
            return _on_tensorrt(opening, rebuild)
        except (GpuMemoryError, GpuFaultError):
            raise  # the CPU would be many times slower
        except MachineError as error:
            if isinstance(error, DeviceError) and not rebuild:
                raise
            why = _in_short(error)
    session, why = _graph_session(opening), f"there is an NVIDIA GPU, but {why}"
    place = session.device.upper()
    _tell(opening.progress, f"{opening.bundle.folder} runs through onnxruntime, on the {place}: {why}")
    return Chosen(session, why, own_plan=False)


def _on_tensorrt(opening: _Opening, rebuild: bool) -> Chosen:
    """As `_tensorrt`; where memory runs out, with what to do then."""
    try:
        return _tensorrt(opening, rebuild)
    except GpuMemoryError as error:
        limit = opening.options.memory_limit
        more = "" if limit is None else f"raise memory_limit ({limit:g} MiB), "
        raise GpuMemoryError(
            f"GPU {opening.device} has too little memory for the plan in {opening.bundle.folder}",
            why=_in_short(error),
            do=f"free GPU memory, {more}or run the graph in its place, more slowly, with runtime='onnxruntime'",
        ) from error


def _tensorrt(opening: _Opening, rebuild: bool) -> Chosen:
    bundle, manifest = opening.bundle, opening.bundle.manifest
    present = installed_families()
    if not opening.gpus:
        raise DeviceError(
            "no NVIDIA GPU here", why="a plan runs on a GPU only", do='use runtime="onnxruntime", or another machine'
        )
    _check_device(opening.device, opening.gpus)
    with ThreadPoolExecutor(1) as reader:
        reading = reader.submit(bundle.read, manifest.plan)  # while CUDA starts and TensorRT is imported
        with opening.progress.stage("start CUDA"):
            Cuda(opening.device)  # where CUDA itself does not work, no other plan would
        name = opening.family or (manifest.family if manifest.family in present else None)
        with opening.progress.stage("import TensorRT"):
            family, _ = choose_family(name, tf32=manifest.precision.tf32)
        data = reading.result()
    misfit = ""
    if (family.name, family.version) != (manifest.family, manifest.family_version):
        misfit = f"it was built with {manifest.family} {manifest.family_version}, and here is {family}"
    else:
        try:
            digest = manifest.files[manifest.plan]
            return Chosen(_session(opening, data, family, digest), "the bundle's own plan", own_plan=True)
        except (GpuMemoryError, GpuFaultError):
            raise  # a rebuilt plan would take as much; on a GPU that works no more it would not run either
        except DeviceError as error:
            misfit = f"{family} could not load it here: {error.why}"
    if not rebuild:
        raise DeviceError(
            f"the plan in {bundle.folder} does not fit this machine",
            why=misfit,
            do="allow a rebuild (rebuild=True), or deploy on this machine",
        )
    data = _rebuilt(bundle, family, opening.gpus[opening.device], misfit, opening.progress)
    return Chosen(_session(opening, data, family, None), f"a plan rebuilt here, since {misfit}", own_plan=False)


def _session(opening: _Opening, plan: bytes, family: Family, digest: str | None) -> Session:
    """`digest` is the plan's SHA-256, where it is known."""
    m, options = opening.bundle.manifest, opening.options
    detail = "TensorRT for RTX compiles its kernels now" if family.is_rtx else ""
    with opening.progress.stage("load the plan", detail):
        return TensorRTSession(
            plan,
            family,
            device=opening.device,
            tf32=m.precision.tf32,
            inputs=m.plan_inputs,
            outputs=m.plan_outputs,
            digest=digest,
            gpu=opening.gpus[opening.device],
            rules=m.rules,
            **msgspec.structs.asdict(options),
        )


def _rebuilt(bundle: Bundle, family: Family, gpu: Gpu, why: str, progress: Progress) -> bytes:
    """A plan for this machine from the bundle's ONNX graph, kept in the user's cache."""
    m = bundle.manifest
    graph_files = {name: digest for name, digest in m.files.items() if name.startswith(m.precision_graph)}
    inputs = {
        "graph": graph_files,
        "family": str(family),
        "gpu": [gpu.name, gpu.compute_capability, gpu.driver],
        "ranges": {letter: str(r) for letter, r in m.ranges.items()},
        "profiles": list(m.profiles),
        "precision": m.precision.value,
    }

    def make(folder: Path) -> None:
        from trtship.engine import plan_apart, sturdy_plan  # with all rewrites of graphs, which loading does not need

        _tell(
            progress,
            f"the plan in {bundle.folder} does not fit this machine: {why}; building one from {m.precision_graph} with "
            f"{family}, which may take minutes, once: it is kept. rebuild=False forbids it",
        )
        with progress.stage("rebuild the plan", f"with {family}"), private_graphs(bundle) as graph:
            plan = sturdy_plan(
                lambda sizes: plan_apart(
                    graph(m.precision_graph),
                    family=family,
                    inputs=m.plan_inputs,
                    ranges=m.ranges,
                    single=sizes,
                    precision=m.precision,
                    progress=progress,
                ),
                single=m.profiles,
                asked=False,
                progress=progress,
            )
        (folder / "model.plan").write_bytes(plan.data)
        (folder / "build.log").write_text(plan.log)

    try:
        entry = Cache().stage("rebuild", inputs, make, subject=str(bundle.folder.absolute()))
    except (GpuMemoryError, GpuFaultError):
        raise
    except MachineError as error:
        raise DeviceError(
            f"the plan in {bundle.folder} does not fit this machine, and could not be rebuilt",
            why=f"{why}; {_in_short(error)}",
            do=error.do,
        ) from error
    return entry.read("model.plan")
