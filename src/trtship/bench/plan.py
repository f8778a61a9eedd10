"""A TensorRT plan as a runner."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trtship.bench.peers.base import Runner, Task
from trtship.family import Family
from trtship.session.tensorrt import TensorRTSession
from trtship.spec import TensorSpec


def plan_runner(
    name: str,
    plan: bytes,
    family: Family,
    task: Task,
    *,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    note: str = "",
) -> Runner:
    """`plan` on device tensors, addresses fixed, so that it can be captured in a CUDA graph."""
    import torch

    session = TensorRTSession(plan, family, tf32=task.precision.tf32, inputs=tuple(inputs), outputs=tuple(outputs))

    def typed(feeds: dict[str, Any]) -> dict[str, Any]:
        return {
            s.name: torch.from_numpy(feeds[s.name]).to(getattr(torch, s.dtype))
            if feeds[s.name].dtype.kind == "f"
            else torch.from_numpy(feeds[s.name])
            for s in inputs
        }

    tensors = {k: v.cuda() for k, v in typed(task.feeds).items()}
    first = outputs[0].name
    return Runner(
        name=name,
        run=lambda: session.infer(tensors)[first],
        host=lambda feeds: session.infer(typed(feeds))[first].float().numpy(),
        captures=True,
        note=note,
        close=session.close,
    )
