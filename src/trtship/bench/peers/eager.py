"""PyTorch eager, with and without channels_last (PyTorch's performance tuning guide recommends it for convolutions)."""

from __future__ import annotations

import copy
from typing import ClassVar

from trtship.bench.peers.base import Peer, Runner, Task, low_dtype, torch_runner


class Eager(Peer):
    name: ClassVar[str] = "eager"

    def runners(self, task: Task) -> list[Runner]:
        import torch

        dtype = low_dtype(task.precision)
        module = copy.deepcopy(task.module).cuda().to(dtype)
        last = copy.deepcopy(module).to(memory_format=torch.channels_last)
        return [
            torch_runner("eager", module, task, dtype=dtype, captures=False),
            torch_runner("eager, CUDA graph", module, task, dtype=dtype, captures=True),
            torch_runner(
                "eager, channels_last, CUDA graph", last, task, dtype=dtype, captures=True, channels_last=True
            ),
        ]
