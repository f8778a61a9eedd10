"""Where runners run: how a call is captured, timed and fed there. A CUDA GPU; the CPU, for trying things out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from trtship.bench.peers.base import Runner
from trtship.bench.timing import calls_for

WARM_UP = 3


class Seat:
    """A runner, ready to be timed: `call` is one inference over `inputs`, whose output it returns; `captured` says
    whether it is the replay of a CUDA graph that we captured, and `note` why not."""

    def __init__(self, runner: Runner, call: Callable[[], Any], *, captured: bool, note: str) -> None:
        self.runner, self.call, self.captured, self.note = runner, call, captured, note


class Device:
    """The CPU. `Cuda` overrides what differs."""

    name = "cpu"

    def seat(self, runner: Runner) -> Seat:
        """The runner, warm and captured where it may be and can be."""
        for _ in range(WARM_UP):
            runner.run()
        return Seat(runner, runner.run, captured=False, note=runner.note)

    def calibrate(self, call: Callable[[], Any]) -> int:
        for _ in range(WARM_UP):
            call()
        return calls_for(self.block(call, 5))

    def block(self, call: Callable[[], Any], calls: int) -> float:
        """Milliseconds a call. One call goes before, so that every block begins in the same state, whoever ran last."""
        call()
        begun = time.perf_counter()
        for _ in range(calls):
            call()
        return (time.perf_counter() - begun) / calls * 1e3

    def feed(self, seat: Seat, feeds: Mapping[str, Any]) -> None:
        """Put arrays where the runner reads its inputs."""
        import torch

        for name, tensor in seat.runner.inputs.items():
            tensor.copy_(torch.from_numpy(feeds[name]))

    def output(self, seat: Seat) -> Any:
        """What one call makes of the inputs as they are: numpy, float32."""
        return seat.call().float().cpu().numpy()

    def end_to_end(self, seat: Seat, feeds: Mapping[str, Any]) -> Callable[[], Any]:
        """From arrays on the host to an array on the host, the same copies for every runner."""

        def once() -> Any:
            self.feed(seat, feeds)
            return self.output(seat)

        return once


class Cuda(Device):
    """GPU 0, on a stream of its own; times by CUDA events."""

    name = "cuda"

    def __init__(self) -> None:
        import torch

        make_stream: Any = torch.cuda.Stream
        self._stream = make_stream()

    def seat(self, runner: Runner) -> Seat:
        import torch

        with torch.cuda.stream(self._stream):
            until = time.monotonic() + runner.settle
            warm = 0
            while warm < WARM_UP or time.monotonic() < until:
                runner.run()
                self._stream.synchronize()
                warm += 1
            if not runner.captures:
                return Seat(runner, runner.run, captured=runner.own_graph, note=runner.note)
            try:
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                    output = runner.run()
            except Exception as error:
                torch.cuda.synchronize()
                why = f"not captured: {type(error).__name__}: {str(error).strip().splitlines()[0][:150]}"
                return Seat(runner, runner.run, captured=False, note=f"{runner.note} {why}".strip())

        def replay() -> Any:
            graph.replay()
            return output

        return Seat(runner, replay, captured=True, note=runner.note)

    def block(self, call: Callable[[], Any], calls: int) -> float:
        import torch

        event: Any = torch.cuda.Event
        begin, end = event(enable_timing=True), event(enable_timing=True)
        with torch.cuda.stream(self._stream):
            call()
            begin.record()
            for _ in range(calls):
                call()
            end.record()
            end.synchronize()
        return float(begin.elapsed_time(end)) / calls

    def feed(self, seat: Seat, feeds: Mapping[str, Any]) -> None:
        import torch

        with torch.cuda.stream(self._stream):
            super().feed(seat, feeds)
            self._stream.synchronize()

    def output(self, seat: Seat) -> Any:
        import torch

        with torch.cuda.stream(self._stream):
            return super().output(seat)

    def end_to_end(self, seat: Seat, feeds: Mapping[str, Any]) -> Callable[[], Any]:
        """Pinned memory at both ends. Inputs cross as they are on the host, and are converted on the GPU where the
        runner takes another type or layout."""
        import torch

        hosts = {name: torch.from_numpy(feeds[name]).pin_memory() for name in seat.runner.inputs}
        stages = {
            name: tensor if _alike(tensor, hosts[name]) else torch.empty_like(hosts[name], device="cuda")
            for name, tensor in seat.runner.inputs.items()
        }
        result = torch.from_numpy(self.output(seat)).pin_memory()

        def once() -> None:
            with torch.cuda.stream(self._stream):
                for name, tensor in seat.runner.inputs.items():
                    stages[name].copy_(hosts[name], non_blocking=True)
                    if stages[name] is not tensor:
                        tensor.copy_(stages[name])
                result.copy_(seat.call().float(), non_blocking=True)
                self._stream.synchronize()

        return once

    def calibrate(self, call: Callable[[], Any]) -> int:
        found = super().calibrate(call)
        self._stream.synchronize()
        return found


def _alike(one: Any, other: Any) -> bool:
    return bool(one.dtype == other.dtype and one.is_contiguous())


def device_of(name: str) -> Device:
    return Cuda() if name == "cuda" else Device()
