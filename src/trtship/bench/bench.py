"""`bench`: a bundle's plan and the peers on the same inputs, the same GPU, in one run, interleaved."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import msgspec

from trtship.bench.gpu_state import GpuState, gpu_state
from trtship.bench.peers import Runner, Task, find
from trtship.bench.plan import plan_runner
from trtship.bench.timing import Timing, time_interleaved, time_on_the_clock
from trtship.bundle.bundle import Bundle
from trtship.engine import plan_from_onnx
from trtship.errors import DeviceError, TrtshipError
from trtship.family import Family, choose_family
from trtship.gpu import Gpu, list_gpus
from trtship.measure import Measure, measure
from trtship.progress import SILENT, Progress
from trtship.sources import LoadedModel
from trtship.spec import Record, ShapeRange, batch_letter

OURS = "trtship"


class Row(Record, frozen=True):
    """One variant at one batch: GPU time and end to end (host to host); its error against the original; or, in
    `reason`, why there is none. `right` is False when the error is over the bundle's bound: such a row wins nothing.
    """

    batch: int
    name: str
    ours: bool
    gpu: Timing | None = None
    end_to_end: Timing | None = None
    cuda_graph: bool = False
    error: Measure | None = None
    right: bool = False
    reason: str = ""
    note: str = ""


class BenchReport(Record, frozen=True):
    """All rows, with the GPU before and after each batch."""

    model: str
    precision: str
    gpu: Gpu
    states: tuple[GpuState | None, ...]
    rows: tuple[Row, ...]

    def ratio(self, batch: int) -> tuple[float, str] | None:
        """How many times as fast as the best right peer ours is at a batch, by GPU time, and that peer's name."""
        timed = [r for r in self.rows if r.batch == batch and r.right and r.gpu is not None]
        ours = [r.gpu.median_ms for r in timed if r.ours and r.gpu]
        peers = [(r.gpu.median_ms, r.name) for r in timed if not r.ours and r.gpu]
        if not ours or not peers:
            return None
        best, name = min(peers)
        return best / min(ours), name


def bench(
    bundle: Bundle,
    original: LoadedModel,
    *,
    against: Sequence[str],
    batches: Sequence[int],
    builds: int = 1,
    progress: Progress = SILENT,
) -> BenchReport:
    """Time the bundle's plan (and `builds` plans built for each batch alone) against the peers.

    `original` must be the model that the bundle was made of: the caller checks that. Raises DeviceError without a GPU,
    SpecError for a peer unknown; a peer that fails is a row with its reason.
    """
    peers = [find(name) for name in against]
    gpus = list_gpus()
    if not gpus:
        raise DeviceError(
            "no NVIDIA GPU here", why="timings of a GPU need one", do="run it on the machine with the GPU"
        )
    rows: list[Row] = []
    states = [gpu_state()]
    for batch in batches:
        task = make_task(bundle, original, batch)
        with contextlib.ExitStack() as stack, progress.stage("bench", f"batch {batch}"):
            runners: list[tuple[Runner, bool]] = []
            for ours, name, make in _makers(bundle, task, peers, builds, progress):
                try:
                    with progress.stage("prepare", name):
                        made = make()
                except Exception as error:
                    rows.append(Row(batch=batch, name=name, ours=ours, reason=_reason(error)))
                    continue
                for runner in made:
                    stack.callback(runner.close)
                    runners.append((runner, ours))
            with progress.stage("time", f"{len(runners)} variants, interleaved"):
                rows += _time(bundle, task, runners)
        states.append(gpu_state())
    return BenchReport(
        model=bundle.manifest.source.source,
        precision=bundle.manifest.precision.value,
        gpu=gpus[0],
        states=tuple(states),
        rows=tuple(rows),
    )


def make_task(bundle: Bundle, original: LoadedModel, batch: int) -> Task:
    """The reference rows, repeated to the batch, for everybody."""
    m = bundle.manifest
    feeds, _ = bundle.reference().at(batch)
    return Task(
        module=original.module,
        graph=bundle.path(m.precision_graph),
        inputs=m.inputs,
        outputs=m.outputs,
        precision=m.precision,
        batch=batch,
        feeds=feeds,
    )


Maker = tuple[bool, str, Callable[[], list[Runner]]]


def _makers(bundle: Bundle, task: Task, peers: Sequence[Any], builds: int, progress: Progress) -> list[Maker]:
    m = bundle.manifest
    family, _ = choose_family(m.family, tf32=m.precision.tf32)
    letter = batch_letter(m.inputs)
    limits = m.ranges.get(letter) if letter else None
    found: list[Maker] = []
    if limits is None or task.batch in limits:
        found.append((True, f"{OURS}, the bundle's plan", partial(_own, bundle, family, task)))
    for index in range(builds):
        name = _built_name(index, builds)
        found.append((True, name, partial(_built, bundle, family, task, name, progress)))
    found += [(False, peer.name, partial(peer.runners, task)) for peer in peers]
    return found


def _built_name(index: int, builds: int) -> str:
    return f"{OURS}, built for this batch" + (f" ({index + 1})" if builds > 1 else "")


def _own(bundle: Bundle, family: Family, task: Task) -> list[Runner]:
    m = bundle.manifest
    name = f"{OURS}, the bundle's plan"
    return [plan_runner(name, bundle.read(m.plan), family, task, inputs=m.plan_inputs, outputs=m.plan_outputs)]


def _built(bundle: Bundle, family: Family, task: Task, name: str, progress: Progress) -> list[Runner]:
    """The same graph with this one batch as its profile: what a user gets from `--batch N`."""
    m = bundle.manifest
    one = ShapeRange(min=task.batch, opt=task.batch, max=task.batch)
    letter = batch_letter(m.inputs)
    plan = plan_from_onnx(
        bundle.path(m.precision_graph),
        family=family,
        inputs=m.plan_inputs,
        ranges={**m.ranges, **({letter: one} if letter else {})},
        precision=m.precision,
        progress=progress,
    )
    return [plan_runner(name, plan.data, family, task, inputs=m.plan_inputs, outputs=m.plan_outputs)]


def _time(bundle: Bundle, task: Task, runners: Sequence[tuple[Runner, bool]]) -> list[Row]:
    import torch

    make_stream: Any = torch.cuda.Stream
    stream = make_stream()
    expected = next(iter(bundle.reference().at(task.batch)[1].values()))
    bound = bundle.manifest.bounds["plan"].value
    runs: dict[str, Callable[[], object]] = {}
    rows: dict[str, Row] = {}
    hosts: dict[str, Callable[[], object]] = {}
    for runner, ours in runners:
        found = runner.host(task.feeds)
        error = measure(expected, found, output=task.outputs[0].name, sizes={"B": task.batch})
        right = error.finite and error.rel_l2 is not None and error.rel_l2 <= bound
        run, captured, note = _captured(runner, stream)
        runs[runner.name] = run
        hosts[runner.name] = partial(runner.host, task.feeds)
        rows[runner.name] = Row(
            batch=task.batch, name=runner.name, ours=ours, cuda_graph=captured, error=error, right=right, note=note
        )
    gpu, clock = time_interleaved(runs, stream), time_on_the_clock(hosts)
    return [msgspec.structs.replace(row, gpu=gpu[name], end_to_end=clock[name]) for name, row in rows.items()]


def _captured(runner: Runner, stream: Any) -> tuple[Callable[[], object], bool, str]:
    """The runner as a CUDA graph where it may be captured and can be."""
    import torch

    if not runner.captures:
        return runner.run, False, runner.note
    try:
        with torch.cuda.stream(stream):
            for _ in range(3):
                runner.run()
            stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream):
                runner.run()
        return graph.replay, True, runner.note
    except Exception as error:
        torch.cuda.synchronize()
        return runner.run, False, f"{runner.note} not captured: {_reason(error)}".strip()


def _reason(error: BaseException) -> str:
    if isinstance(error, TrtshipError):
        return f"{error.what}: {error.why}" if error.why else error.what
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200] if lines else ''}"
