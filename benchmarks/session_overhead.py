"""What `trtship.load` adds to a plan: against raw replay of a CUDA graph of the same plan on the same GPU, in one run.

    python benchmarks/session_overhead.py BUNDLE [--batches 1 8 32] [--map-batch 32] [--out FILE]

On device tensors: microseconds a call, medians of ROUNDS rounds of CALLS calls each, the ways taking turns. `raw` is
`cudaGraphLaunch` through cuda-bindings and nothing else. `session` is `session(x)`, which gives a new result each time;
`out` writes into one given. Back to back on one stream, and with a synchronize after each call.

With host images, `session.map` over batches in ordinary and in pinned memory against raw replay: images a second.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import runs
import torch

import trtship
from trtship.bundle import Bundle
from trtship.family import choose_family
from trtship.session.bound import BoundPlan
from trtship.session.cuda import Cuda

ROUNDS, CALLS = 9, 200
ITEMS = 200
"""Batches that go through one `map`."""
SETTLE = 12.0
"""Seconds for kernels that are compiled in the background, where a batch has no profile of its own."""


class Raw:
    """A CUDA graph of the plan at one batch, its buffers torch's."""

    def __init__(self, bundle: Bundle, batch: int, stream: torch.cuda.Stream) -> None:
        m = bundle.manifest
        family, _ = choose_family(m.family)
        (spec,), (out,) = m.plan_inputs, m.plan_outputs
        self.cuda, self.stream = Cuda(), stream
        self.image = torch.randn(spec.with_sizes({"B": batch}), device="cuda").to(getattr(torch, spec.dtype))
        self.result = torch.empty(out.with_sizes({"B": batch}), device="cuda", dtype=getattr(torch, out.dtype))
        shapes = {spec.name: tuple(self.image.shape)}
        self.plan = BoundPlan(bundle.read(m.plan), family, shapes, tf32=m.precision.tf32)
        addresses = {spec.name: self.image.data_ptr(), out.name: self.result.data_ptr()}
        for wait in (0.0,) if self.plan.is_settled else (0.0, SETTLE):
            time.sleep(wait)
            self.plan.enqueue(addresses, stream.cuda_stream)
            stream.synchronize()
        handle = stream.cuda_stream
        self.graph = self.cuda.capture(lambda: self.plan.enqueue(addresses, handle), handle)

    def call(self) -> Callable[[], object]:
        launch, graph, handle = self.cuda._rt.cudaGraphLaunch, self.graph, self.stream.cuda_stream
        return lambda: launch(graph, handle)

    def close(self) -> None:
        self.stream.synchronize()
        self.cuda.destroy_graph(self.graph)
        self.plan.close()


def time_calls(call: Callable[[], object], stream: torch.cuda.Stream, *, each: bool) -> float:
    """Microseconds a call, wall clock, over CALLS calls."""
    stream.synchronize()
    begun = time.perf_counter()
    for _ in range(CALLS):
        call()
        if each:
            stream.synchronize()
    stream.synchronize()
    return (time.perf_counter() - begun) / CALLS * 1e6


def compare(bundle: Bundle, session: trtship.BundleSession, batch: int) -> dict[str, Any]:
    stream = torch.cuda.Stream()
    raw = Raw(bundle, batch, stream)
    image, kept = raw.image, torch.empty_like(raw.result)
    with torch.cuda.stream(stream):
        ways: dict[str, Callable[[], object]] = {
            "raw": raw.call(),
            "session": lambda: session(image),
            "out": lambda: session(image, out=kept),
        }
        for _ in range(8):
            session(image)
            session(image, out=kept)
        if not raw.plan.is_settled:
            time.sleep(SETTLE)
            for _ in range(8):
                session(image)
                session(image, out=kept)
        raw.call()()
        stream.synchronize()
        off = float((session(image).double() - raw.result.double()).norm() / raw.result.double().norm())
        times: dict[str, dict[str, list[float]]] = {w: {"back_to_back": [], "synchronized": []} for w in ways}
        for _ in range(ROUNDS):
            for way, call in ways.items():
                times[way]["back_to_back"].append(time_calls(call, stream, each=False))
                times[way]["synchronized"].append(time_calls(call, stream, each=True))
        host = {way: host_time(call, stream) for way, call in ways.items()}
    medians = {w: {k: round(statistics.median(v), 2) for k, v in kinds.items()} for w, kinds in times.items()}
    raw.close()
    return {
        "batch": batch,
        **{f"{w}_{k}_us": value for w, kinds in medians.items() for k, value in kinds.items()},
        **{f"{way}_host_us": value for way, value in host.items()},
        "throughput_ratio": round(medians["raw"]["back_to_back"] / medians["session"]["back_to_back"], 4),
        "added_us": round(medians["session"]["synchronized"] - medians["raw"]["synchronized"], 2),
        "out_added_us": round(medians["out"]["synchronized"] - medians["raw"]["synchronized"], 2),
        "relative_l2": off,
    }


def host_time(call: Callable[[], object], stream: torch.cuda.Stream) -> float:
    """Microseconds that the calling thread spends in a call, the GPU idle before each: the median."""
    found = []
    for _ in range(CALLS):
        stream.synchronize()
        begun = time.perf_counter()
        call()
        found.append((time.perf_counter() - begun) * 1e6)
    stream.synchronize()
    return round(statistics.median(found), 2)


def streams_of_batches(bundle: Bundle, session: trtship.BundleSession, batch: int) -> dict[str, Any]:
    """Images a second."""
    (spec,) = bundle.manifest.plan_inputs
    stream = torch.cuda.Stream()
    raw = Raw(bundle, batch, stream)
    shape, rng = spec.with_sizes({"B": batch}), np.random.default_rng(0)
    plain = [rng.standard_normal(shape, dtype=np.float32).astype(spec.dtype) for _ in range(8)]
    pinned = [torch.from_numpy(array).pin_memory() for array in plain]
    ways: dict[str, Callable[[], object]] = {
        "map_plain": lambda: drained(session.map(plain[i % 8] for i in range(ITEMS))),
        "map_pinned": lambda: drained(session.map(pinned[i % 8] for i in range(ITEMS))),
        "one_by_one": lambda: drained(session(plain[i % 8]) for i in range(ITEMS)),
    }
    for call in ways.values():
        call()
    found: dict[str, list[float]] = {"raw": [], **{way: [] for way in ways}}
    for _ in range(5):
        found["raw"].append(batch * 1e6 / time_calls(raw.call(), stream, each=False))
        for way, call in ways.items():
            begun = time.perf_counter()
            call()
            found[way].append(batch * ITEMS / (time.perf_counter() - begun))
    raw.close()
    rates = {f"{way}_images_per_s": round(statistics.median(values), 1) for way, values in found.items()}
    base = rates["raw_images_per_s"]
    return {
        "batch": batch,
        **rates,
        **{f"{way}_ratio": round(rates[f"{way}_images_per_s"] / base, 4) for way in ways},
        "mib_a_batch": round(plain[0].nbytes / 2**20, 2),
    }


def drained(results: Any) -> None:
    for _ in results:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--map-batch", type=int, default=32)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "session_overhead.json")
    arguments = parser.parse_args()
    bundle = Bundle.open(arguments.bundle)
    with trtship.load(bundle, runtime="tensorrt") as session:
        rows = [compare(bundle, session, batch) for batch in arguments.batches]
        mapped = streams_of_batches(bundle, session, arguments.map_batch)
        memory = session.memory._asdict()
    document = {
        "what": "trtship session against raw CUDA graph replay of the same plan",
        "model": bundle.manifest.source.source,
        "precision": bundle.manifest.precision.value,
        "rows": rows,
        "map": mapped,
        "memory_mib": memory,
    }
    runs.write(arguments.out, document)
    print(json.dumps({"rows": rows, "map": mapped, "memory_mib": memory}, indent=2))


if __name__ == "__main__":
    main()
