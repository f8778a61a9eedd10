"""What memory is left behind by opening and closing a plan, step by step, and by calls of each kind.

    python benchmarks/leaks.py BUNDLE [--cycles 120] [--out FILE]

On a machine with a GPU; one that nobody else uses where the driver does not tell what a process has. Each step is done
over and over; what is told is how many KiB of the process's and of the GPU's memory one time leaves, the first times
left out. The steps of opening are TensorRT's own first (a runtime, an engine, a kernel cache filled from what was kept,
kernels serialized, a context), so that what is trtship's can be told from what is not; then with a kernel cache that
each engine leaves to the next (`trtship/family/spares.py`), as a session does. `held` is what such a cache alone holds
once its engine is closed.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import runs

import trtship
from trtship.bundle import Bundle
from trtship.family import choose_family
from trtship.family.kernels import Kernels
from trtship.family.spares import Owner
from trtship.session.cuda import Cuda
from trtship.session.tensorrt import TensorRTSession

OWNER = ("leaks", 0)
SETTLE, WINDOWS = 10.0, 5


def taken(cuda: Cuda) -> tuple[float, float]:
    """KiB of the GPU's memory (but for a constant), and those of the process."""
    gc.collect()
    mine = runs.gpu_memory()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    gpu = -cuda.free_memory() / 1024 if mine is None else mine * 1024
    return gpu, pages * os.sysconf("SC_PAGE_SIZE") / 1024


def left_behind(work: Callable[[int], object], times: int, cuda: Cuda, *, settle: float = 0.0) -> dict[str, float]:
    """KiB of one time: the median of WINDOWS, so that what is taken once does not count. `settle` are seconds in which
    kernels are compiled in the background."""
    part = max(1, times // (WINDOWS + 1))
    for wait in (settle, 0.0) if settle else (0.0,):
        for index in range(part):
            work(index)
        time.sleep(wait)
    marks = [taken(cuda)]
    for window in range(1, WINDOWS + 1):
        for index in range(part):
            work(window * part + index)
        marks.append(taken(cuda))
    gpu, host = (
        statistics.median(later[at] - earlier[at] for earlier, later in pairwise(marks)) / part for at in (0, 1)
    )
    return {"gpu_kib": round(gpu, 1), "host_kib": round(host, 1)}


class Opening:
    """A plan's opening, in steps."""

    def __init__(self, bundle: Bundle, cuda: Cuda) -> None:
        m = bundle.manifest
        self.family, _ = choose_family(m.family, tf32=m.precision.tf32)
        self.manifest, self.plan, self.cuda = m, bundle.read(m.plan), cuda
        self.stream = cuda.create_stream()
        self.engine = self.family.load(self.plan, tf32=m.precision.tf32)
        self.engine.create_context(0, self.stream)
        cuda.synchronize(self.stream)
        self.kernels = self.engine.kernels.serialized()

    def steps(self) -> Iterator[tuple[str, Callable[[int], object]]]:
        module, tf32 = self.family.module, self.manifest.precision.tf32
        yield "a runtime", lambda _: module.Runtime(self.family.logger)
        yield "an engine", lambda _: self.family.load(self.plan, tf32=tf32).close()
        yield (
            "a kernel cache, filled",
            lambda _: Kernels(module, self.engine._engine, self.kernels, turn=self.engine.turn),
        )
        yield "an engine with kernels", lambda _: self.family.load(self.plan, tf32=tf32, kernels=self.kernels).close()
        yield "kernels serialized", lambda _: self.engine.kernels.serialized()
        yield "a context", lambda _: self.context(self.engine)
        yield "a context, and its kernels serialized", lambda _: self.context(self.engine, serialize=True)
        yield "an engine with kernels, and a context", lambda _: self.engine_and_context(None)
        yield "an engine with the last one's kernels, and a context", lambda _: self.engine_and_context(OWNER)
        yield "the same, its kernels serialized", lambda _: self.engine_and_context(OWNER, serialize=True)
        yield "a session", lambda _: self.session(0)
        yield "a session and a call", lambda _: self.session(1)
        yield "a session and a graph", lambda _: self.session(3)

    def context(self, engine: Any, *, serialize: bool = False) -> None:
        made = engine.create_context(0, self.stream)
        self.cuda.synchronize(self.stream)
        if serialize:
            engine.kernels.serialized()
        del made

    def engine_and_context(self, owner: Owner | None, *, serialize: bool = False) -> None:
        engine = self.family.load(self.plan, tf32=self.manifest.precision.tf32, kernels=self.kernels, owner=owner)
        self.context(engine, serialize=serialize)
        engine.close()

    def held(self) -> dict[str, float]:
        """KiB that a kernel cache alone holds, and those that are left behind once it is gone too; how many references
        to the engine it has."""
        before = taken(self.cuda)
        engine = self.family.load(self.plan, tf32=self.manifest.precision.tf32, kernels=self.kernels)
        references = sys.getrefcount(engine._engine)
        cache = engine._engine.create_runtime_config().create_runtime_cache()
        pins = sys.getrefcount(engine._engine) - references
        del cache
        self.context(engine)
        cache = engine.kernels._held
        engine.close()
        del engine
        with_cache = taken(self.cuda)
        del cache
        after = taken(self.cuda)
        return {
            "gpu_kib": round(with_cache[0] - after[0], 1),
            "host_kib": round(with_cache[1] - after[1], 1),
            "left_gpu_kib": round(after[0] - before[0], 1),
            "left_host_kib": round(after[1] - before[1], 1),
            "references_to_the_engine": pins,
        }

    def session(self, calls: int) -> None:
        m = self.manifest
        opened = TensorRTSession(
            self.plan, self.family, tf32=m.precision.tf32, inputs=m.plan_inputs, outputs=m.plan_outputs
        )
        with opened:
            for _ in range(calls):
                opened.infer(zeros(opened, opened.ranges["B"].opt))


def given_up(session: trtship.BundleSession, feeds: dict[str, Any]) -> None:
    """What is done where memory runs out, and three calls: eagerly, captured, replayed."""
    plan: Any = session._session
    plan._runs.trim()
    for _ in range(3):
        session.infer(feeds)


def zeros(session: Any, batch: int) -> dict[str, Any]:
    return {spec.name: np.zeros(spec.with_sizes({"B": batch}), spec.dtype) for spec in session.inputs}


@contextmanager
def opened(bundle: Bundle, sizes: list[int], **options: Any) -> Iterator[trtship.BundleSession]:
    """With contexts, buffers and graphs for these sizes."""
    with trtship.load(bundle, runtime="tensorrt", max_contexts=1, **options) as session:
        session.warm_up(sizes)
        yield session


def calls(bundle: Bundle) -> Iterator[tuple[str, Callable[[int], object]]]:
    """Kinds of calls, on a session that is open while they are taken."""
    limits = bundle.manifest.ranges["B"]
    sizes = list(range(limits.min, min(limits.max, limits.min + 31) + 1))
    with opened(bundle, sizes) as session:
        feeds = [zeros(session, size) for size in sizes]
        yield "graphs, one size", lambda _: session.infer(feeds[0])
        yield "graphs, all sizes in turn", lambda i: session.infer(feeds[i % len(feeds)])
        yield "map, all sizes in turn", lambda i: list(session.map([feeds[i % len(feeds)]] * 2))
        yield "contexts and graphs given up, and made again", lambda _: given_up(session, feeds[0])
        yield "ainfer", lambda _: asyncio.run(session.ainfer(feeds[0]))
    with opened(bundle, sizes, graphs=0) as session:
        yield "no graphs, one size", lambda _: session.infer(feeds[0])
        yield "no graphs, all sizes in turn", lambda i: session.infer(feeds[i % len(feeds)])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--cycles", type=int, default=120, help="times that it is opened; calls are ten times as many")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "leaks.json")
    arguments = parser.parse_args()
    bundle, cuda = Bundle.open(arguments.bundle), Cuda()
    rows: dict[str, dict[str, float]] = {}
    opening = Opening(bundle, cuda)
    for name, step in opening.steps():
        rows[name] = left_behind(step, arguments.cycles, cuda)
        print(name, rows[name], flush=True)
    held = opening.held()
    print("held", held, flush=True)
    for name, call in calls(bundle):
        rows[name] = left_behind(call, 10 * arguments.cycles, cuda, settle=SETTLE)
        print(name, rows[name], flush=True)
    m = bundle.manifest
    runs.write(
        arguments.out,
        {
            "what": "KiB left behind by one opening, or one call",
            "model": m.source.source,
            "precision": m.precision.value,
            "plan_mib": round(len(opening.plan) / 2**20, 2),
            "kernels_mib": round(len(opening.kernels) / 2**20, 2),
            "held": held,
            "rows": rows,
        },
    )
    print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
