"""Which runtime a bundle gets on this machine: its plan, a rebuilt plan, or onnxruntime; and why."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from trtship.bundle.bundle import Bundle
from trtship.cache import Cache
from trtship.engine import plan_apart, sturdy_plan
from trtship.errors import DeviceError, GpuMemoryError, MachineError
from trtship.family import Family, choose_family, installed_families
from trtship.gpu import Gpu, list_gpus
from trtship.progress import SILENT, Progress
from trtship.session.base import Session
from trtship.session.cuda import Cuda
from trtship.session.onnxruntime import OnnxRuntimeSession
from trtship.session.tensorrt import TensorRTSession

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

    Raises MachineError where the asked `runtime` is not possible here, or where `rebuild=False` and the plan does
    not fit.
    """
    if runtime == "onnxruntime":
        return _onnxruntime(bundle, "as asked")
    gpus = list_gpus()
    opening = _Opening(bundle, family, device, gpus, options, progress)
    if runtime == "tensorrt":
        return _tensorrt(opening, rebuild)
    if not gpus:
        return _onnxruntime(bundle, "no NVIDIA GPU here")
    if not installed_families():
        return _onnxruntime(bundle, "there is an NVIDIA GPU, but no TensorRT: pip install 'trtship[rtx]'")
    _check_device(device, gpus)
    try:
        return _tensorrt(opening, rebuild)
    except MachineError as error:
        if isinstance(error, DeviceError) and not rebuild:
            raise
        why = f"there is an NVIDIA GPU, but {error.what}: {error.why}"
        progress.note(f"runs through onnxruntime: {why}")
        return _onnxruntime(bundle, why)


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


def _onnxruntime(bundle: Bundle, why: str) -> Chosen:
    m = bundle.manifest
    # fp32, unless the plan takes or gives another type: then the graph that does so too
    same = (m.inputs, m.outputs) == (m.plan_inputs, m.plan_outputs)
    graph = bundle.path(m.graph if same else m.precision_graph)
    session = OnnxRuntimeSession(graph, providers="auto" if list_gpus() else "cpu")
    return Chosen(session, why, own_plan=False)


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
        except GpuMemoryError:
            raise  # a rebuilt plan would take as much
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
        progress.note(f"the plan does not fit this machine: {why}; building one from {m.precision_graph}")
        with progress.stage("rebuild the plan", f"with {family}"):
            plan = sturdy_plan(
                lambda sizes: plan_apart(
                    bundle.path(m.precision_graph),
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
    except MachineError as error:
        raise DeviceError(
            f"the plan in {bundle.folder} does not fit this machine, and could not be rebuilt",
            why=f"{why}; {error.what}: {error.why}",
            do=error.do,
        ) from error
    return entry.read("model.plan")
