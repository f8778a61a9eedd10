"""What rounding batches up to sizes that have a CUDA graph gains, where there are more sizes than graphs; and what one
batch takes at each size.

    python benchmarks/rounding.py BUNDLE [--graphs 64 0] [--sizes 24 28 31 32] [--settle 15 65] [--out FILE]

Batches of random size, from the smallest to the largest, the same for every way: tensors on the GPU, each at an
address of its own. A way is a session with so many graphs (0: all runs are eager); they take turns. Milliseconds, the
medians of ROUNDS rounds of CALLS calls: back to back, and with a synchronize after each.

For `--sizes` the same size again and again, in its own graph.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import runs
import torch

import trtship
from trtship.bundle import Bundle

ROUNDS, CALLS = 5, 200


class Way:
    """A session with so many graphs, on a stream of its own."""

    def __init__(self, bundle: Bundle, graphs: int) -> None:
        self.session = trtship.load(bundle, runtime="tensorrt", graphs=graphs, max_contexts=1)
        self.stream = torch.cuda.Stream()
        (spec,) = bundle.manifest.plan_inputs
        limits = bundle.manifest.ranges["B"]
        shape = spec.with_sizes({"B": limits.max})
        self.pool = torch.randn(shape, device="cuda").to(getattr(torch, spec.dtype))
        self.limits = limits

    def batches(self, sizes: Sequence[int]) -> list[torch.Tensor]:
        return [self.pool[self.limits.max - n :].clone() for n in sizes]

    def run(self, batches: Sequence[torch.Tensor], *, each: bool) -> float:
        """Milliseconds a call."""
        torch.cuda.synchronize()  # the batches were made on another stream
        with torch.cuda.stream(self.stream):
            begun = time.perf_counter()
            for x in batches:
                self.session(x)
                if each:
                    self.stream.synchronize()
            self.stream.synchronize()
        return (time.perf_counter() - begun) / len(batches) * 1e3


def randomly(ways: dict[str, Way], limits: Any, settle: Sequence[float]) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randint(limits.min, limits.max + 1, (CALLS,), generator=generator).tolist() for _ in range(ROUNDS)]
    for pause in (*settle, 0):
        for way in ways.values():
            for sizes in drawn:
                way.run(way.batches(sizes), each=True)
        time.sleep(pause)
    found: dict[str, dict[str, list[float]]] = {name: {"back_to_back": [], "synchronized": []} for name in ways}
    for sizes in drawn:
        for name, way in ways.items():
            batches = way.batches(sizes)
            found[name]["back_to_back"].append(way.run(batches, each=False))
            found[name]["synchronized"].append(way.run(batches, each=True))
    rows: dict[str, Any] = {}
    for name, way in ways.items():
        kept = way.session.memory
        rows[name] = {f"{how}_ms": round(statistics.median(times), 4) for how, times in found[name].items()}
        rows[name] |= {f"{how}_ms_of_rounds": [round(one, 4) for one in times] for how, times in found[name].items()}
        rows[name] |= {"graphs_kept": kept.graphs_kept, "memory_mib": round(kept.total, 1)}
    return rows


def one_by_one(bundle: Bundle, sizes: Sequence[int], settle: Sequence[float]) -> dict[str, float]:
    """Milliseconds of a call of each size, back to back."""
    way = Way(bundle, graphs=64)
    way.session.warm_up(list(sizes))
    found: dict[int, list[float]] = {size: [] for size in sizes}
    for pause in (*settle, 0):
        for size in sizes:
            way.run(way.batches([size]) * 20, each=True)
        time.sleep(pause)
    for _ in range(ROUNDS):
        for size in sizes:
            found[size].append(way.run(way.batches([size]) * 50, each=False))
    way.session.close()
    return {str(size): round(statistics.median(times), 4) for size, times in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--graphs", type=int, nargs="*", default=[64, 0], metavar="N")
    parser.add_argument("--sizes", type=int, nargs="*", default=[], metavar="N")
    parser.add_argument(
        "--settle",
        type=float,
        nargs="+",
        default=[15, 65],
        metavar="S",
        help="seconds after the first runs, and after more of them, for kernels compiled in the background; graphs are "
        "captured again for them after 10 and 60 (default: 15 65)",
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "rounding.json")
    arguments = parser.parse_args()
    bundle = Bundle.open(arguments.bundle)
    m = bundle.manifest
    ways = {f"graphs={count}": Way(bundle, count) for count in arguments.graphs}
    rows = randomly(ways, m.ranges["B"], arguments.settle) if ways else {}
    for way in ways.values():
        way.session.close()
    sizes = one_by_one(bundle, arguments.sizes, arguments.settle) if arguments.sizes else {}
    document = {
        "what": "batches of random size by the number of CUDA graphs; one batch at each size",
        "model": m.source.source,
        "precision": m.precision.value,
        "batches": [m.ranges["B"].min, m.ranges["B"].max],
        "profiles": list(m.profiles),
        "settle_seconds": arguments.settle,
        "ways": rows,
        "ms_at_size": sizes,
    }
    runs.write(arguments.out, document)
    print(json.dumps({"ways": rows, "ms_at_size": sizes}, indent=2))


if __name__ == "__main__":
    main()
