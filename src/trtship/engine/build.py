"""Build a plan from a strongly typed ONNX graph."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from trtship.engine.layers import PlanLayers, layers_of
from trtship.engine.problems import explain_build, explain_parse
from trtship.engine.profiles import profiles_of
from trtship.engine.timings import TimingStore
from trtship.errors import Cancelled, DeviceError, GraphError, SpecError
from trtship.family import Family
from trtship.family.logger import recording, recording_layers
from trtship.gpu import list_gpus
from trtship.progress import SILENT, Progress
from trtship.spec import Precision, Record, ShapeRange, TensorSpec


class BuildReport(Record, frozen=True):
    """How a plan was made. `gpu` is the one it was built on, empty when it was built ahead of time without one.

    `single` are the batch sizes with a profile of their own, `left_out` says why there are none where the usual ones
    were wanted. `targets` are the compute capabilities it was built for, empty for all that the family supports; each
    of `profiles` maps each input to its min, opt and max shape; `environment` are variables that must be set alike
    where the plan is run (trtship sets them itself).
    """

    family: str
    version: str
    gpu: str
    compute_capability: str
    targets: tuple[str, ...]
    tf32: bool
    environment: dict[str, str]
    single: tuple[int, ...]
    profiles: tuple[dict[str, tuple[tuple[int, ...], ...]], ...]
    layers: int
    seconds: float
    plan_mib: float
    warnings: int
    left_out: str = ""


class Plan(msgspec.Struct, frozen=True):
    """The serialized plan, TensorRT's log (INFO and above), the report and the plan's layers."""

    data: bytes
    log: str
    report: BuildReport
    layers: PlanLayers


_one_at_a_time = threading.Lock()


def plan_from_onnx(
    graph: Path,
    *,
    family: Family,
    inputs: Sequence[TensorSpec],
    ranges: Mapping[str, ShapeRange],
    single: Sequence[int] = (),
    precision: Precision = Precision.FP32,
    targets: Sequence[str] = (),
    progress: Progress = SILENT,
) -> Plan:
    """In this process, parse `graph` and build it with an optimization profile over `ranges`, which has a range for
    every letter, and one for each batch size in `single` (see `trtship.engine.profiles`).

    `precision` only decides about TF32, which is a way to multiply and no type in the graph. Ctrl-C, or any
    exception in the main thread, cancels the build at TensorRT's next step.

    Raises GraphError (an op or shape TensorRT lacks), SpecError (`targets`, `ranges`), BuildError, Cancelled.
    """
    profiles = profiles_of(inputs, ranges, single=single)
    targets = tuple(dict.fromkeys(targets))
    check_can_build(family, targets)
    gpus = list_gpus()
    begun = time.monotonic()
    with _one_at_a_time, recording(family.module) as log, recording_layers(family.module) as said:
        builder = family.create_builder()
        network = family.create_network(builder)
        problems = family.parse(network, graph)
        if problems:
            raise explain_parse(problems, graph, family)
        _check_inputs(network, inputs, graph)
        watch = _Watch(progress)
        store = TimingStore(family, gpus[0]) if gpus and family.times_kernels() else None
        config = family.create_config(
            builder,
            network,
            profiles=profiles,
            tf32=precision.tf32,
            targets=targets,
            on_step=watch.on_step,
            timings=store.load() if store else None,
        )
        data = _build_in_thread(lambda: family.build(builder, network, config, tf32=precision.tf32), watch)
        if data is None:
            raise explain_build(log, family)
        if store:
            store.keep(family.timings(config))
        report = BuildReport(
            family=family.name,
            version=family.version,
            gpu=gpus[0].name if gpus else "",
            compute_capability=gpus[0].compute_capability if gpus else "",
            targets=targets,
            tf32=precision.tf32,
            environment=family.environment(tf32=precision.tf32),
            single=tuple(single),
            profiles=profiles,
            layers=int(network.num_layers),
            seconds=round(time.monotonic() - begun, 2),
            plan_mib=round(len(data) / 2**20, 2),
            warnings=sum(line.startswith("[W]") for line in log),
        )
    layers = layers_of(data, family=family, said=said, tf32=precision.tf32, profiles=len(profiles))
    return Plan(data, "\n".join(log) + "\n", report, layers)


def check_can_build(family: Family, targets: Sequence[str]) -> None:
    """Raises SpecError for a compute capability that the family cannot build for, DeviceError where it needs a GPU
    and there is none. Cheap: ask before any other work."""
    if not family.builds_without_gpu() and not list_gpus():
        raise DeviceError(
            f"{family} cannot build here",
            why="full TensorRT times kernels on the GPU that it builds for, and this machine has none",
            do="build on the machine with the GPU, or use --family tensorrt_rtx, which builds ahead of time",
        )
    known = family.compute_capabilities()
    for target in targets:
        if target not in known:
            raise SpecError(
                f"{family} cannot build for --target {target!r}",
                why=f"it takes {', '.join(known)}" if known else "full TensorRT builds for the GPU of this machine",
                do="leave --target away to build for all that it supports" if known else "leave --target away",
            )


def _check_inputs(network: Any, inputs: Sequence[TensorSpec], graph: Path) -> None:
    found = {network.get_input(i).name for i in range(network.num_inputs)}
    wanted = {spec.name for spec in inputs}
    if found != wanted:
        raise GraphError(
            f"{graph} has other inputs than expected",
            why=f"found {sorted(found)}, expected {sorted(wanted)}",
            do="look for an input that nothing in the graph uses",
        )


class _Watch:
    """Passes TensorRT's steps on to `progress`, never backwards, and cancels the build when asked to, or when
    `progress` raises: TensorRT would print the exception and go on without a reason."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._furthest = progress, 0.0
        self.cancel = threading.Event()
        self.error: BaseException | None = None

    def on_step(self, done: float, phase: str) -> bool:
        if self.cancel.is_set():  # what TensorRT tells while it clears up is no progress
            return False
        self._furthest = max(self._furthest, done)
        try:
            self._progress.step(self._furthest, phase)
        except BaseException as error:
            self.error = self.error or error
            self.cancel.set()
        return not self.cancel.is_set()


def _build_in_thread(build: Callable[[], bytes | None], watch: _Watch) -> bytes | None:
    """Build in a worker, so that Ctrl-C reaches this thread while TensorRT is busy; wait for it to let go.

    An event tells that it has: `Thread.join` takes a thread for ended once a signal interrupted it (Python 3.11), and a
    process that ends with TensorRT still at work is aborted.
    """
    result: list[bytes | None] = []
    done = threading.Event()

    def work() -> None:
        try:
            result.append(build())
        except BaseException as error:
            watch.error = watch.error or error
        finally:
            done.set()

    worker = threading.Thread(target=work, daemon=True)
    try:
        worker.start()  # Ctrl-C may arrive in here too, with the thread at work already
        while not done.wait(0.1):
            pass
    except BaseException as error:
        watch.cancel.set()
        while not done.is_set():
            with suppress(KeyboardInterrupt):
                if not done.wait(1) and worker.ident is None:
                    break  # interrupted before there was a thread
        if isinstance(error, KeyboardInterrupt):
            do = "nothing was left behind; run it again when you like"
            raise Cancelled("the build was cancelled", do=do) from None
        raise
    if watch.error is not None:
        raise watch.error
    return result[0] if result else None
