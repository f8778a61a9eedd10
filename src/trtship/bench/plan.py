"""TensorRT plans as runners: ours, and those of the peer that goes through ONNX as everybody does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from trtship.bench.peers.base import Absent, Peer, Runner, Task
from trtship.bench.reasons import reason_of
from trtship.errors import TrtshipError
from trtship.family import Family, choose_family
from trtship.session.bound import BoundPlan
from trtship.spec import Precision, Record, ShapeRange, TensorSpec

SETTLE = 10.0
"""Seconds. At a size that a plan leaves open, TensorRT for RTX runs generic kernels first, and compiles better ones in
the background meanwhile: a graph captured at once would hold the generic ones for good."""


class PlanGraph(Record, frozen=True):
    """A strongly typed graph to build plans from. `ranges` has the letters' ranges; `family` None for what is here."""

    name: str
    graph: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    ranges: dict[str, ShapeRange]
    precision: Precision
    family: str | None


class PlanFile(Record, frozen=True):
    """A plan of this run's own, or one whose hash was checked; `build` counts those of one graph, from 1; 0 for
    one. `dynamic`: it takes more than one size."""

    name: str
    build: int
    path: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    family: str | None
    tf32: bool
    dynamic: bool


class Plans(Peer):
    """Runs plans that were built before, all in one process."""

    name: ClassVar[str] = "plans"
    needs_module: ClassVar[bool] = False

    def __init__(self, plans: tuple[PlanFile, ...] = ()) -> None:
        self.plans = plans

    def runners(self, task: Task) -> Iterator[Runner | Absent]:
        for plan in self.plans:
            try:
                family, _ = choose_family(plan.family, tf32=plan.tf32)
                runner = plan_runner(plan, family, task.feeds)
            except TrtshipError as error:  # the next one may fit this machine
                yield Absent(name=plan.name, reason=reason_of(error))
                continue
            yield runner


def plan_runner(plan: PlanFile, family: Family, feeds: dict[str, Any]) -> Runner:
    """A plan on device tensors, addresses fixed, so that it can be captured in a CUDA graph."""
    import torch

    shapes = {s.name: tuple(feeds[s.name].shape) for s in plan.inputs}
    bound = BoundPlan(Path(plan.path).read_bytes(), family, shapes, tf32=plan.tf32)
    try:
        inputs = {s.name: torch.from_numpy(feeds[s.name]).cuda().to(getattr(torch, s.dtype)) for s in plan.inputs}
        outputs = {
            s.name: torch.empty(bound.output_shapes[s.name], dtype=getattr(torch, s.dtype), device="cuda")
            for s in plan.outputs
        }
    except BaseException:  # too little memory
        bound.close()
        raise
    addresses = {name: tensor.data_ptr() for name, tensor in {**inputs, **outputs}.items()}
    first = outputs[plan.outputs[0].name]

    def run() -> Any:
        bound.enqueue(addresses, torch.cuda.current_stream().cuda_stream)
        return first

    return Runner(
        name=plan.name,
        build=plan.build,
        settle=SETTLE if plan.dynamic else 0.0,
        inputs=inputs,
        run=run,
        captures=True,
        runtime=str(family),
        close=bound.close,
    )
