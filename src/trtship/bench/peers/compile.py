"""torch.compile in the two modes that its documentation gives for speed: reduce-overhead and max-autotune.

https://docs.pytorch.org/docs/stable/generated/torch.compile.html. Both put the model into CUDA graphs of their own, and
choose layouts for convolutions by themselves. The inputs are marked as static, so that these graphs read them where
they lie, as ours do, and not from a copy made at every call.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import ClassVar

from trtship.bench.peers.base import Peer, Runner, Task, low_dtype, on_device, torch_runner


class Compile(Peer):
    name: ClassVar[str] = "compile"
    variants: ClassVar[tuple[str, ...]] = ("reduce-overhead", "max-autotune")
    alone: ClassVar[bool] = True

    def runners(self, task: Task) -> Iterator[Runner]:
        import torch
        from torch._dynamo.utils import counters

        dtype = low_dtype(task.precision)
        inputs = on_device(task, dtype=dtype)
        for tensor in inputs.values():
            torch._dynamo.mark_static_address(tensor)
        module = torch.compile(
            copy.deepcopy(task.module).to(task.device).to(dtype), mode=task.variant, fullgraph=True, dynamic=False
        )
        runner = torch_runner(f"torch.compile, {task.variant}", module, inputs, captures=False)
        for _ in range(3):  # the first call compiles, the next two record the CUDA graph
            runner.run()
        skipped = counters["inductor"]["cudagraph_skips"]
        runner.own_graph = task.device == "cuda" and not skipped
        runner.note = f"it left CUDA graphs out {skipped} times" if skipped else ""
        yield runner
