"""Plans built in processes of their own, several at once: `python -m trtship.bench.build` builds one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import msgspec

from trtship.bench.plan import PlanFile, PlanGraph
from trtship.bench.protocol import Failed, Written
from trtship.bench.reasons import reason_of
from trtship.bench.timing import RunnerFailed
from trtship.family import installed_families
from trtship.processes import end, how_it_ended, keep_stdout, last_words, start

TO_BUILD = 900.0
"""Seconds for one build."""


def builds_on_gpu(family: str | None) -> bool:
    """Full TensorRT times kernels on the GPU while it builds; TensorRT for RTX leaves the GPU alone."""
    here = installed_families()
    return (family or next((name for name in ("tensorrt", "tensorrt_rtx") if name in here), "")) == "tensorrt"


class Builders:
    """Builds plans, as many at once as make sense: one where that needs the GPU, else one for every two CPU cores."""

    def __init__(self, family: str | None) -> None:
        self._pool = ThreadPoolExecutor(1 if builds_on_gpu(family) else max(1, (os.cpu_count() or 1) // 2))
        self._running: set[subprocess.Popen[bytes]] = set()
        self._closed = False

    def submit(self, graph: PlanGraph, *, count: int, folder: Path, path: Path | None = None) -> list[Future[PlanFile]]:
        """`count` plans of the same graph, by the TensorRT that is found with `path` ahead on the import path. A
        future's exception is RunnerFailed where its build failed."""
        folder.mkdir(parents=True)
        numbers = [i + 1 if count > 1 else 0 for i in range(count)]
        return [self._pool.submit(self._build, graph, folder / f"{n}.plan", n, path) for n in numbers]

    def close(self) -> None:
        """End what is still being built."""
        self._closed = True
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in list(self._running):
            end(process)
        self._pool.shutdown()

    def _build(self, graph: PlanGraph, target: Path, number: int, path: Path | None) -> PlanFile:
        log = target.with_suffix(".txt")
        process = start("trtship.bench.build", str(target), path=path, log=log)
        self._running.add(process)
        try:
            if self._closed:
                raise RunnerFailed("it was cancelled")
            found, _ = process.communicate(msgspec.json.encode(graph), timeout=TO_BUILD)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise RunnerFailed(f"building it failed: {reason_of(error)}") from error
        finally:
            end(process)
            self._running.discard(process)
        _check(found, process.returncode, log)
        return PlanFile(
            name=graph.name,
            build=number,
            path=str(target),
            inputs=graph.inputs,
            outputs=graph.outputs,
            family=graph.family,
            tf32=graph.precision.tf32,
            dynamic=any(r.min < r.max for r in graph.ranges.values()),
        )


def _check(found: bytes, code: int, log: Path) -> None:
    try:
        answer = msgspec.json.decode(found, type=Written | Failed)
    except msgspec.MsgspecError:
        raise RunnerFailed(f"the process that built it {how_it_ended(code)}: {last_words(log)}") from None
    if isinstance(answer, Failed):
        raise RunnerFailed(answer.reason)


def main(arguments: Sequence[str]) -> int:
    answers = keep_stdout()
    try:
        _build_here(msgspec.json.decode(sys.stdin.buffer.read(), type=PlanGraph), Path(arguments[0]))
        answer: Written | Failed = Written()
    except Exception as error:
        answer = Failed(reason=reason_of(error))
    answers.write(msgspec.json.encode(answer))
    answers.flush()
    return int(isinstance(answer, Failed))


def _build_here(graph: PlanGraph, target: Path) -> None:
    from trtship.engine import plan_from_onnx
    from trtship.family import choose_family

    family, _ = choose_family(graph.family, tf32=graph.precision.tf32)
    plan = plan_from_onnx(
        Path(graph.graph), family=family, inputs=graph.inputs, ranges=graph.ranges, precision=graph.precision
    )
    target.write_bytes(plan.data)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
