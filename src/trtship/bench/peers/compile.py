"""torch.compile in the two modes that its documentation gives for speed: reduce-overhead and max-autotune.

Both put the model into CUDA graphs of their own.
"""

from __future__ import annotations

import copy
from typing import ClassVar

from trtship.bench.peers.base import Peer, Runner, Task, low_dtype, torch_runner


class Compile(Peer):
    name: ClassVar[str] = "compile"

    modes: ClassVar[tuple[str, ...]] = ("reduce-overhead", "max-autotune")

    def runners(self, task: Task) -> list[Runner]:
        import torch

        dtype = low_dtype(task.precision)
        found = []
        for mode in self.modes:
            torch._dynamo.reset()
            module = torch.compile(
                copy.deepcopy(task.module).cuda().to(dtype), mode=mode, fullgraph=True, dynamic=False
            )
            runner = torch_runner(f"torch.compile, {mode}", module, task, dtype=dtype, captures=False)
            for _ in range(3):  # the first call compiles, the next two record the CUDA graph
                runner.run()
            torch.cuda.synchronize()
            found.append(runner)
        return found
