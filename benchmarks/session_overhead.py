"""trtship's session against raw `execute_async_v3` on the same plan, in one run, A B A B.

    python benchmarks/session_overhead.py BUNDLE [--batches 1 8 32] [--json FILE]

Device tensors in and out. `raw` sets no shape and no address between calls: the least that Python can do. Medians of
ROUNDS rounds of CALLS calls each; microseconds a call, back to back on one stream, then with a synchronize after each.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import trtship
from trtship.bundle import Bundle
from trtship.deployment.options import versions
from trtship.family import choose_family, installed_families
from trtship.family.profiles import narrowest
from trtship.gpu import list_gpus
from trtship.spec import as_plain

ROUNDS, CALLS = 9, 100


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


def compare(bundle: Bundle, batch: int) -> dict[str, Any]:
    family, _ = choose_family(bundle.manifest.family)
    spec = bundle.manifest.plan_inputs[0]
    out = bundle.manifest.plan_outputs[0]
    image = torch.randn(spec.with_sizes({"B": batch}), device="cuda")
    result = torch.empty(out.with_sizes({"B": batch}), device="cuda")
    engine = family.load(bundle.read(bundle.manifest.plan), tf32=bundle.manifest.precision.tf32)
    stream, shapes = torch.cuda.Stream(), {spec.name: tuple(image.shape)}
    profile = narrowest(engine.profiles, shapes)
    engine.prepare(profile, stream.cuda_stream)
    engine.set_shapes(shapes, profile)
    addresses = {spec.name: image.data_ptr(), out.name: result.data_ptr()}
    with trtship.load(bundle, runtime="tensorrt") as session, torch.cuda.stream(stream):
        engine.execute(addresses, stream.cuda_stream)
        stream.synchronize()
        assert engine._active is not None
        context, handle = engine._active._context, stream.cuda_stream
        ways: dict[str, Callable[[], object]] = {
            "raw": lambda: context.execute_async_v3(handle),
            "session": lambda: session(image),
        }
        torch.testing.assert_close(session(image), result, rtol=0, atol=0)
        times: dict[str, dict[str, list[float]]] = {w: {"back_to_back": [], "synchronized": []} for w in ways}
        for _ in range(ROUNDS):
            for way, call in ways.items():
                times[way]["back_to_back"].append(time_calls(call, stream, each=False))
                times[way]["synchronized"].append(time_calls(call, stream, each=True))
    medians = {w: {k: round(statistics.median(v), 2) for k, v in kinds.items()} for w, kinds in times.items()}
    return {
        "batch": batch,
        **{f"{w}_{k}_us": value for w, kinds in medians.items() for k, value in kinds.items()},
        "throughput_ratio": round(medians["raw"]["back_to_back"] / medians["session"]["back_to_back"], 4),
        "added_us": round(medians["session"]["synchronized"] - medians["raw"]["synchronized"], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    bundle = Bundle.open(arguments.bundle)
    rows = [compare(bundle, batch) for batch in arguments.batches]
    document = {
        "what": "trtship session against raw execute_async_v3 on the same plan",
        "model": bundle.manifest.source.source,
        "precision": bundle.manifest.precision.value,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": "python benchmarks/session_overhead.py " + " ".join(sys.argv[1:]),
        "machine": {"platform": f"{platform.system()} {platform.machine()}", "gpus": as_plain(list_gpus())},
        "versions": {**versions(), **installed_families()},
        "rows": rows,
    }
    for row in rows:
        print("  ".join(f"{k}={v}" for k, v in row.items()))
    if arguments.json:
        arguments.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
