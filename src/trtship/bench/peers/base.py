"""A peer: another way to run the same model, at the settings its own documentation recommends for speed.

A peer is a file in this package with one subclass of `Peer`; its `name` is what `--against` takes. Each file says in
its docstring where its settings come from.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from trtship.spec import Precision, TensorSpec


@dataclass(frozen=True, kw_only=True)
class Task:
    """What all are asked to run: the original module (fp32, on the CPU; copy it before changing it), the bundle's
    graph as it was exported, a batch size, and the example inputs by name (numpy, that batch)."""

    module: Any
    graph: Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    precision: Precision
    batch: int
    feeds: dict[str, Any]


class Runner(msgspec.Struct):
    """One variant, ready: `run` enqueues an inference on the current CUDA stream over buffers of its own and returns
    its outputs (torch, on the GPU); `host` goes from numpy to numpy. `captures` says whether `run` may be captured
    in a CUDA graph by us; `note` what a reader of the table should know; `close` frees what it holds."""

    name: str
    run: Callable[[], Any]
    host: Callable[[dict[str, Any]], Any]
    captures: bool
    note: str = ""
    close: Callable[[], None] = lambda: None


class Peer(ABC):
    """Makes the variants of one peer. Raises any exception to say that it cannot: the table then has its reason."""

    name: ClassVar[str]

    @abstractmethod
    def runners(self, task: Task) -> list[Runner]:
        """The variants at the task's batch; building and compiling happens here, not in the first timed call."""


def low_dtype(precision: Precision) -> Any:
    """The torch type in which peers run a bundle's precision: its own; fp16 beside fp32 and tf32 bundles is unfair, so
    those run in fp32."""
    import torch

    return {Precision.FP16: torch.float16, Precision.BF16: torch.bfloat16}.get(precision, torch.float32)


def torch_runner(
    name: str, module: Any, task: Task, *, dtype: Any, captures: bool, channels_last: bool = False, note: str = ""
) -> Runner:
    """A runner for a callable on CUDA tensors: its inputs lie on the GPU in `dtype`."""
    import torch

    def on_gpu(feeds: dict[str, Any]) -> list[Any]:
        found = []
        for spec in task.inputs:
            tensor = torch.from_numpy(feeds[spec.name]).cuda(non_blocking=True)
            tensor = tensor.to(dtype) if tensor.is_floating_point() else tensor
            found.append(tensor.to(memory_format=torch.channels_last) if channels_last and tensor.ndim == 4 else tensor)
        return found

    tensors = on_gpu(task.feeds)

    def run() -> Any:
        with torch.inference_mode():
            return module(*tensors)

    def host(feeds: dict[str, Any]) -> Any:
        with torch.inference_mode():
            result = module(*on_gpu(feeds))
        first = result[0] if isinstance(result, (tuple, list)) else result
        return first.float().cpu().numpy()

    return Runner(name=name, run=run, host=host, captures=captures, note=note)
