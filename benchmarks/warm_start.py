"""How long a fresh process takes from `trtship.load` to its first result, with no kernels kept and with them.

    python benchmarks/warm_start.py BUNDLE [--batch 1] [--cold 2] [--warm 5] [--out FILE]

On a machine with a GPU. Every process is new; a cold one has an empty cache of its own. The files are in the page cache
in both cases; importing numpy and trtship is not counted, and told as `import`. With the split: `load` and its stages,
and the first call, in which the context is made where kernels were kept.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import runs

ONE = """
import json, sys, time
import numpy as np
starting = time.perf_counter()
import trtship
from trtship.progress import Progress
load = trtship.load  # which imports what it needs
imported = time.perf_counter() - starting

class Stages(Progress):
    taken = {}
    def started(self, name, detail):
        self.taken[name] = -time.perf_counter()
    def finished(self, name, *, ok):
        self.taken[name] += time.perf_counter()

begun = time.perf_counter()
with load(sys.argv[1], runtime="tensorrt", progress=Stages()) as session:
    loaded = time.perf_counter()
    (spec,) = session.inputs
    x = np.zeros(spec.with_sizes({n: int(sys.argv[2]) for n in spec.shape if isinstance(n, str)}), spec.dtype)
    made = time.perf_counter()
    session(x)
    first = time.perf_counter()
    for _ in range(5):
        session(x)
    warm = time.perf_counter()
    for _ in range(20):
        session(x)
    later = (time.perf_counter() - warm) / 20
stages = {name.replace(" ", "_"): seconds for name, seconds in Stages.taken.items()}
print(json.dumps({
    "import": imported, "load": loaded - begun, **stages, "first_call": first - made, "later_call": later,
}))
"""


def one(bundle: Path, batch: int, cache: Path) -> dict[str, float]:
    """Seconds, of one process."""
    done = subprocess.run(
        [sys.executable, "-c", ONE, str(bundle), str(batch)],
        env={**os.environ, "TRTSHIP_CACHE": str(cache)},
        stdout=subprocess.PIPE,
        check=True,
    )
    found: dict[str, float] = json.loads(done.stdout)
    return {**found, "to_first_result": found["load"] + found["first_call"]}


def summary(rows: list[dict[str, float]]) -> dict[str, Any]:
    """Medians, and the worst time to the first result; seconds."""
    medians = {name: round(statistics.median(row[name] for row in rows), 4) for name in rows[0]}
    return {"runs": len(rows), **medians, "slowest": round(max(row["to_first_result"] for row in rows), 4)}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--cold", type=int, default=2)
    parser.add_argument("--warm", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "warm_start.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        caches = [Path(name) / str(index) for index in range(arguments.cold)]
        cold = [one(arguments.bundle, arguments.batch, cache) for cache in caches]
        warm = [one(arguments.bundle, arguments.batch, caches[0]) for _ in range(arguments.warm)]
        (kept,) = (caches[0] / "kernels").iterdir()
        figures = {"cold": summary(cold), "warm": summary(warm), "kept_mib": round(kept.stat().st_size / 2**20, 2)}
    model = json.loads((arguments.bundle / "manifest.json").read_text())["source"]["source"]
    runs.write(
        arguments.out,
        {
            "what": "seconds from trtship.load to the first result",
            "model": model,
            "batch": arguments.batch,
            **figures,
        },
    )
    print(json.dumps(figures, indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
