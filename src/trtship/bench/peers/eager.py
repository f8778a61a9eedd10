"""PyTorch eager, with and without channels_last, cuDNN choosing its algorithms by timing them: both are in PyTorch's
performance tuning guide, as are CUDA graphs for what is bound by launches.

https://docs.pytorch.org/tutorials/recipes/recipes/tuning_guide.html
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from trtship.bench.peers.base import Measures, Peer, Runner, Task, low_copy, low_dtype, on_device, torch_runner
from trtship.session.module_copy import copy_module


class Eager(Peer):
    name: ClassVar[str] = "eager"
    measures: ClassVar[Measures] = Measures.ALONE

    def runners(self, task: Task) -> Iterator[Runner]:
        import torch

        torch.backends.cudnn.benchmark = True
        dtype = low_dtype(task.precision)
        module = low_copy(task.module, dtype, device=task.device)
        inputs = on_device(task, dtype=dtype)
        yield torch_runner("eager", module, inputs, captures=False)
        if task.device != "cuda":
            return
        yield torch_runner("eager, CUDA graph", module, inputs, captures=True)
        last = copy_module(module).to(memory_format=torch.channels_last)
        inputs = on_device(task, dtype=dtype, channels_last=True)
        yield torch_runner("eager, channels_last, CUDA graph", last, inputs, captures=True)
