"""torch.compile in the two modes that its documentation gives for speed: reduce-overhead and max-autotune.

https://docs.pytorch.org/docs/stable/generated/torch.compile.html. Both put the model into CUDA graphs of their own, and
choose layouts for convolutions by themselves. The inputs are marked as static, so that these graphs read them where
they lie, as ours do, and not from a copy made at every call.

Compiling is work for the CPU, for minutes, between which it times kernels on the GPU. So several compile at once, and
each timing waits until nobody else takes one. It takes the least, or the median, of up to 100 runs, so that the few
milliseconds in which another process moves its weights, or runs its model once, do not count either.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, ClassVar

from trtship.bench.peers.base import Measures, Peer, Runner, Task, low_copy, low_dtype, on_device, torch_runner
from trtship.bench.turns import turn


class Compile(Peer):
    name: ClassVar[str] = "compile"
    variants: ClassVar[tuple[str, ...]] = ("reduce-overhead", "max-autotune")
    measures: ClassVar[Measures] = Measures.IN_TURN

    def runners(self, task: Task) -> Iterator[Runner]:
        import torch
        import torch._inductor.config
        from torch._dynamo.utils import counters

        torch._inductor.config.compile_threads = max(1, (os.cpu_count() or 1) // 2)
        _time_in_turn(task)
        dtype = low_dtype(task.precision)
        inputs = on_device(task, dtype=dtype)
        for tensor in inputs.values():
            torch._dynamo.mark_static_address(tensor)
        module = torch.compile(
            low_copy(task.module, dtype, device=task.device), mode=task.variant, fullgraph=True, dynamic=False
        )
        runner = torch_runner(f"torch.compile, {task.variant}", module, inputs, captures=False)
        for _ in range(3):  # the first call compiles, the next two record the CUDA graph
            runner.run()
        skipped = counters["inductor"]["cudagraph_skips"]
        runner.own_graph = task.device == "cuda" and not skipped
        runner.note = f"it left CUDA graphs out {skipped} times" if skipped else ""
        yield runner


def _time_in_turn(task: Task) -> None:
    """Every timing that the compiler takes on the GPU of this process, in a turn of its own."""
    from torch._inductor.runtime.benchmarking import benchmarker

    measured = benchmarker.benchmark_gpu

    def in_turn(*arguments: Any, **options: Any) -> Any:
        with turn(task.turns):
            return measured(*arguments, **options)

    benchmarker.benchmark_gpu = in_turn  # type: ignore[method-assign]
