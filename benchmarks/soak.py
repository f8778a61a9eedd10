"""A bundle under load for as long as it is told: many threads, random batches, calls that are cancelled; every output
is held against the bundle's own reference, and memory against what it was.

    python benchmarks/soak.py BUNDLE [--minutes 30] [--threads 16] [--sizes N ...] [--ways WAY ...] [--out FILE]

Each thread calls one session with batches of random size (up to 1.25 times the largest, so that some are split; or
`--sizes`) of random rows of the reference: numpy arrays, torch tensors on the GPU with a stream of the thread's own,
torch tensors on the host, or `map` over a few. A call of `ainfer` is cancelled every second. Outputs must be within the
bound that the bundle's plan was gated on. It begins with all threads in a `map` at once, since a session keeps buffers
for as many as there ever were. Memory is sampled every few seconds; growth is the median of the last fifth
of the samples over that of the first fifth after the warm-up. Ends with 1 where an output was wrong, a call failed, or
memory grew.

TensorRT for RTX compiles kernels in the background for every size that has no profile of its own, once a context, which
takes seconds and memory each: with all sizes of a large range that goes on for minutes, and memory grows until then.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import json
import os
import random
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import runs
import torch

import trtship
from trtship.session.cuda import Cuda
from trtship.verify.compare import as_session_takes

WAYS = {"numpy": 0.35, "torch_gpu": 0.4, "torch_host": 0.2, "map": 0.05}
"""Of the calls."""
WARM_UP = 0.1
"""Of the time, at least: contexts, graphs and allocators settle."""
FEWEST = 10
"""Samples that say anything of growth."""
M_MMAP_THRESHOLD = -3
LARGE = 1 << 20
"""Bytes from which malloc maps memory of its own, and gives it back: else each thread's arena keeps what its largest
batches took, and says nothing of the session."""
WRITE_EVERY = 60.0
"""Seconds from one time that the results so far are written to the next: a machine may go away."""
GPU_GROWTH, HOST_GROWTH = 16.0, 64.0
"""MiB that count as none: the GPU's memory is handed out in 2 MiB pages, the host's allocators keep arenas a thread."""


class Soak:
    """One session, its reference, and what became of every call."""

    def __init__(
        self, session: trtship.BundleSession, seconds: float, sizes: list[int], *, threads: int, ways: list[str]
    ) -> None:
        self.session, self.seconds = session, seconds
        reference = session.bundle.reference()
        bound = session.bundle.manifest.bounds["plan"]
        self.bound, self.rows = bound.value, reference.rows
        self.name, self.out = session.inputs[0].name, session.outputs[0].name
        feeds = as_session_takes(session, reference.inputs)
        self.inputs = np.ascontiguousarray(feeds[self.name])
        self.expected = np.asarray(reference.outputs[self.out], np.float64)
        self.tensors = torch.from_numpy(self.inputs).cuda()
        limits = session.ranges["B"]
        self.sizes = sizes or list(range(limits.min, int(limits.max * 1.25) + 1))
        self.counts: Counter[str] = Counter()
        self.worst, self.faults = 0.0, []  # type: float, list[str]
        self.lock = threading.Lock()
        self.ends = time.monotonic() + seconds
        self.all_there = threading.Barrier(threads)
        self.ways = [way for way in WAYS if way in ways]
        self.shares = [WAYS[way] / sum(WAYS[way] for way in self.ways) for way in self.ways]

    def check(self, way: str, rows: Any, found: Any) -> None:
        found = found.float().cpu().numpy() if isinstance(found, torch.Tensor) else found
        expected = self.expected[rows]
        if found.shape != expected.shape:
            self.fault(f"{way}: the shape is {found.shape} where it should be {expected.shape}")
            return
        flat, wanted = found.reshape(len(rows), -1), expected.reshape(len(rows), -1)
        off = float((np.linalg.norm(flat - wanted, axis=1) / np.linalg.norm(wanted, axis=1)).max())
        with self.lock:
            self.counts[way] += 1
            self.counts["images"] += len(rows)
            self.worst = max(self.worst, off)
        if not off <= self.bound:
            self.fault(f"{way}: {len(rows)} rows, relative L2 {off:.3g} where {self.bound:.3g} is allowed")

    def fault(self, text: str) -> None:
        with self.lock:
            self.faults.append(text)
        say(text)

    def work(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        stream = torch.cuda.Stream()
        try:
            with torch.cuda.stream(stream):
                stream.wait_stream(torch.cuda.default_stream())
                if "map" in self.ways:
                    self.open_a_map()
                while time.monotonic() < self.ends:
                    self.one(rng, seed)
        except Exception as error:
            self.fault(f"a thread ended: {type(error).__name__}: {error}")

    def open_a_map(self) -> None:
        """In all threads before any goes on."""
        rows = np.arange(self.session.ranges["B"].max) % self.rows
        opened = self.session.map(self.inputs[rows] for _ in range(4))
        self.check("map", rows, next(opened))
        self.all_there.wait(timeout=60)
        for found in opened:
            self.check("map", rows, found)

    def one(self, rng: np.random.Generator, seed: int) -> None:
        rows = rng.integers(self.rows, size=int(rng.choice(self.sizes)))
        way = rng.choice(list(self.ways), p=self.shares)
        if way == "numpy":
            self.check(way, rows, self.session(self.inputs[rows]))
        elif way == "torch_gpu":
            self.check(way, rows, self.session(self.tensors[torch.from_numpy(rows).cuda()]))
        elif way == "torch_host":
            self.check(way, rows, self.session(torch.from_numpy(self.inputs[rows])))
        else:
            many = [rng.integers(self.rows, size=int(rng.choice(self.sizes))) for _ in range(4)]
            for part, found in zip(many, self.session.map(self.inputs[part] for part in many), strict=True):
                self.check(way, part, found)

    async def cancelling(self) -> None:
        """A call that is cancelled every second, and one beside it that is not."""
        while time.monotonic() < self.ends:
            rows = np.arange(min(self.rows, 8))
            cancelled = asyncio.create_task(self.session.ainfer(self.inputs[rows]))
            kept = asyncio.create_task(self.session.ainfer(self.inputs[rows]))
            await asyncio.sleep(random.random() * 0.003)
            cancelled.cancel()
            (end,) = await asyncio.gather(cancelled, return_exceptions=True)
            if isinstance(end, Exception):
                raise end
            with self.lock:
                was = isinstance(end, asyncio.CancelledError)
                self.counts["cancelled" if was else "finished_before_it_was_cancelled"] += 1
            self.check("ainfer", rows, await kept)
            await asyncio.sleep(1)

    def cancel(self) -> None:
        try:
            asyncio.run(self.cancelling())
        except Exception as error:
            self.fault(f"ainfer: {type(error).__name__}: {error}")


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


class Mallinfo2(ctypes.Structure):
    """What glibc's malloc tells of itself, all arenas together; bytes."""

    _fields_ = [(name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd")] + [
        (name, ctypes.c_size_t) for name in ("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    ]


def malloc_in_use() -> int:
    """Bytes that malloc has handed out, but for pieces of LARGE and more: batches come and go, what stays is seen."""
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = Mallinfo2
    return int(mallinfo2().uordblks)


def sample(used: Callable[[], float], begun: float, session: trtship.BundleSession) -> dict[str, float]:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "seconds": round(time.monotonic() - begun, 1),
        "gpu_used_mib": round(used(), 2),
        "torch_reserved_mib": round(torch.cuda.memory_reserved() / 2**20, 2),
        "session_mib": round(session.memory.total, 2),
        "rss_mib": round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 2),
        "malloc_mib": round(malloc_in_use() / 2**20, 3),
        "python_blocks": sys.getallocatedblocks(),
    }


def growth(samples: list[dict[str, float]], name: str, *, warm_up: float) -> float | None:
    """MiB from the first fifth of the samples after the warm-up to the last fifth; None where there are fewer than
    ten."""
    begins = max(warm_up, WARM_UP * samples[-1]["seconds"])
    settled = [one for one in samples if one["seconds"] >= begins]
    if len(settled) < FEWEST:
        return None
    fifth = max(1, len(settled) // 5)
    first, last = settled[:fifth], settled[-fifth:]
    return round(statistics.median(s[name] for s in last) - statistics.median(s[name] for s in first), 2)


def document_of(
    soak: Soak, samples: list[dict[str, float]], arguments: argparse.Namespace, *, told: bool, ended: bool
) -> dict[str, Any]:
    """What there is to say so far; `told`: the driver tells what this process has."""
    seconds = samples[-1]["seconds"]
    gpu, host, own, small = (
        growth(samples, name, warm_up=arguments.warm_up)
        for name in ("gpu_used_mib", "rss_mib", "session_mib", "malloc_mib")
    )
    with soak.lock:
        calls, faults, worst = dict(soak.counts), list(soak.faults), soak.worst
    grown = gpu is None or gpu > GPU_GROWTH or host is None or host > HOST_GROWTH
    verdict = "failed" if faults or grown else "passed"
    manifest = soak.session.bundle.manifest
    return {
        "what": "a soak: threads, random batches, cancelled calls",
        "model": manifest.source.source,
        "precision": manifest.precision.value,
        "verdict": verdict if ended else "not ended",
        "minutes": round(seconds / 60, 2),
        "threads": arguments.threads,
        "sizes": soak.sizes,
        "ways": soak.ways,
        "calls": calls,
        "images_per_s": round(calls.get("images", 0) / seconds, 1),
        "worst_relative_l2": worst,
        "bound": soak.bound,
        "faults": faults[:50],
        "fault_count": len(faults),
        "warm_up_seconds": max(arguments.warm_up, WARM_UP * seconds),
        "growth_mib": {
            "gpu_used": gpu,
            "session": own,
            "rss": host,
            "malloc": small,
            "allowed": [GPU_GROWTH, HOST_GROWTH],
        },
        "gpu_used_by": "this process" if told else "all processes",
        "session_memory_mib": soak.session.memory._asdict(),
        "samples": samples[:: max(1, len(samples) // 400)],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--threads", type=int, default=16)
    parser.add_argument("--sizes", type=int, nargs="+", default=[], metavar="N", help="of batches (default: all)")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS), help="to call (default: all)")
    parser.add_argument("--no-cancel", dest="cancel", action="store_false", help="no calls that are cancelled")
    parser.add_argument("--warm-up", type=float, default=60, help="seconds before memory counts, at least a tenth")
    parser.add_argument("--every", type=float, default=5, help="seconds from one sample to the next")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "soak.json")
    arguments = parser.parse_args()
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE)
    cuda = Cuda()
    total = torch.cuda.mem_get_info()[1]

    def used() -> float:
        mine = runs.gpu_memory() if told else None
        return (total - cuda.free_memory()) / 2**20 if mine is None else mine

    told = runs.gpu_memory() is not None
    with trtship.load(arguments.bundle, runtime="tensorrt") as session:
        limits = session.ranges["B"]
        session.warm_up(sorted({limits.min, limits.opt, limits.max}))
        soak = Soak(session, arguments.minutes * 60, arguments.sizes, threads=arguments.threads, ways=arguments.ways)
        workers = [threading.Thread(target=soak.work, args=(seed,)) for seed in range(arguments.threads)]
        if arguments.cancel:
            workers.append(threading.Thread(target=soak.cancel))
        begun = time.monotonic()
        for worker in workers:
            worker.start()
        samples: list[dict[str, float]] = []
        written = begun
        while any(worker.is_alive() for worker in workers):
            samples.append(sample(used, begun, session))
            with soak.lock:
                calls = sum(count for way, count in soak.counts.items() if way != "images")
            if len(samples) % 6 == 1:
                say(f"{calls} calls, worst {soak.worst:.2e}, {len(soak.faults)} faults, {samples[-1]}")
            if time.monotonic() - written > WRITE_EVERY:
                written = time.monotonic()
                runs.write(arguments.out, document_of(soak, samples, arguments, told=told, ended=False))
            time.sleep(arguments.every)
        for worker in workers:
            worker.join()
        samples.append(sample(used, begun, session))
        document = document_of(soak, samples, arguments, told=told, ended=True)
    runs.write(arguments.out, document)
    print(json.dumps({name: value for name, value in document.items() if name != "samples"}, indent=2))
    return int(document["verdict"] != "passed")


if __name__ == "__main__":
    raise SystemExit(main())
