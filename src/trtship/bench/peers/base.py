"""A peer: another way to run the same model, at the settings its own documentation recommends for speed.

A peer is a file in this package with one subclass of `Peer`; its `name` is what `--against` takes. Each file says in
its docstring where its settings come from. It lives in processes of its own: one for each variant at each batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from trtship.session.module_copy import convert, copy_module
from trtship.spec import Precision, Record, TensorSpec


class Measures(Enum):
    """What a peer does on the GPU while it prepares; in the order in which they prepare."""

    ALONE = 0
    IN_TURN = 1
    NO = 2


@dataclass(frozen=True, kw_only=True)
class Task:
    """What all are asked to run: the original module (fp32, on the CPU; copy it before changing it; None for a peer
    that needs none), the bundle's graph as it was exported, a batch size, the inputs by name (numpy, that batch), and
    the device, `"cuda"` or `"cpu"`. `variant` is one of the peer's own, `folder` a place for its files, and `turns` a
    file that all workers share."""

    module: Any
    graph: Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    precision: Precision
    batch: int
    feeds: dict[str, Any]
    device: str
    variant: str
    folder: Path
    turns: Path


class Runner(msgspec.Struct):
    """One variant, ready. `run` enqueues an inference on the current stream, over the tensors in `inputs` (by name, on
    the device, always the same ones), and returns its first output. `captures` says whether `run` may be captured in a
    CUDA graph by us, `own_graph` that it replays one of its own; `note` what a reader of the table should know,
    `runtime` what runs it; `close` frees what it holds. It is run for `settle` seconds before it is captured."""

    name: str
    inputs: dict[str, Any]
    run: Callable[[], Any]
    captures: bool
    own_graph: bool = False
    build: int = 0
    settle: float = 0.0
    note: str = ""
    runtime: str = ""
    close: Callable[[], None] = lambda: None


class Absent(Record, frozen=True):
    """A variant that could not be made ready, and why; without a name it is all that the peer still had to offer."""

    name: str
    reason: str


class Peer(ABC):
    """Makes the variants of one peer. Raises any exception to say that it cannot: the table then has its reason.

    `variants` get a process each. `needs_module`: it starts from the PyTorch module. `measures` says whether it times
    kernels on the GPU while it prepares, to choose between them: `ALONE`, so that nothing else may prepare meanwhile;
    `IN_TURN`, each time in a `turn` of its own on the task's `turns`, so that only others of this kind may; or `NO`.
    """

    name: ClassVar[str]
    variants: ClassVar[tuple[str, ...]] = ("",)
    measures: ClassVar[Measures] = Measures.NO
    needs_module: ClassVar[bool] = True

    @abstractmethod
    def runners(self, task: Task) -> Iterable[Runner | Absent]:
        """The variants at the task's batch; building and compiling happens here, not in the first timed call. Each is
        warmed up, and captured where it may be, before the next is asked for."""


def low_dtype(precision: Precision) -> Any:
    """The torch type in which peers run a bundle's precision: its own; fp16 beside fp32 and tf32 bundles is unfair, so
    those run in fp32."""
    import torch

    return getattr(torch, precision.graph_dtype)


def low_specs(specs: tuple[TensorSpec, ...], precision: Precision) -> tuple[TensorSpec, ...]:
    """The same tensors in the precision's own type."""
    return tuple(msgspec.structs.replace(s, dtype=precision.graph_dtype) if s.dtype == "float32" else s for s in specs)


def low_copy(module: Any, dtype: Any, *, device: str = "cpu") -> Any:
    """A private copy of the module on `device`, its float32 tensors in `dtype`; float64 and complex ones stay."""
    import torch

    return convert(copy_module(module).to(device), {torch.float32: dtype})


def on_device(task: Task, *, dtype: Any, channels_last: bool = False) -> dict[str, Any]:
    """The task's inputs on its device, floating ones in `dtype`."""
    import torch

    found = {}
    for spec in task.inputs:
        tensor = torch.from_numpy(task.feeds[spec.name]).to(task.device)
        tensor = tensor.to(dtype, copy=True) if tensor.is_floating_point() else tensor.clone()
        last = channels_last and tensor.ndim == 4
        found[spec.name] = tensor.to(memory_format=torch.channels_last) if last else tensor
    return found


def torch_runner(name: str, module: Any, inputs: dict[str, Any], **more: Any) -> Runner:
    """A runner for a callable that takes `inputs` by position; `more` are fields of Runner."""
    import torch

    tensors = list(inputs.values())

    def run() -> Any:
        with torch.inference_mode():
            result = module(*tensors)
        return result[0] if isinstance(result, (tuple, list)) else result

    return Runner(name=name, inputs=inputs, run=run, **{"runtime": f"torch {torch.__version__}", **more})
