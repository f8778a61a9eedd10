"""Is anything slower for having gone through trtship? Our deploy's plans against the plain ONNX -> TensorRT way.

    python benchmarks/plain_ratio.py [--models NAME ...] [--batches 1,32] [--builds 3] [--out FILE]

fp16, models of models.py. For each, at each batch, `--builds` plans of the graph that `trtship deploy` makes (simpler,
optimized, strongly typed) and as many of the half-precision module exported and built with nothing in between, all with
inputs and outputs in fp16, timed in one run, A B A B, in CUDA graphs. The ratio is the median of the plain way's builds
over the median of ours: above 1, ours is faster. Models are deployed and exported in processes side by side.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import runs

from trtship.bench.build import Builders, builds_on_gpu
from trtship.bench.entrants import Entrant
from trtship.bench.exact import exact_reference
from trtship.bench.field import our_graph, ranges_at, work_of
from trtship.bench.original import options_of, original_of
from trtship.bench.peers.onnx_tensorrt import OnnxTensorRT
from trtship.bench.plan import PlanGraph, Plans
from trtship.bench.race import Heat, Outcome, Truth, race
from trtship.bundle import Bundle
from trtship.cli.console import Console
from trtship.spec import as_plain, to_json
from trtship.verify import Reference

MODELS = ("vit_b", "convnext_t", "resnet50", "efficientnet_b0")
WITHIN = 300.0


def make(model: str, folder: Path, batches: Sequence[int]) -> None:
    """In a process of its own: the bundle, the plain way's graph, and the float64 outputs of the reference rows."""
    folder.mkdir()
    runs.deploy(model, folder / "bundle", precision="fp16", batch=runs.batch_range(batches))
    bundle = Bundle.open(folder / "bundle")
    m, reference = bundle.manifest, bundle.reference()
    original = original_of(bundle, options_of(bundle))
    plain = OnnxTensorRT().export(
        original.module,
        folder / "plain.onnx",
        inputs=m.inputs,
        outputs=m.outputs,
        precision=m.precision,
        feeds=reference.inputs,
        ranges=m.ranges,
    )
    (folder / "plain.json").write_bytes(to_json(plain))
    exact = exact_reference(original.module, reference, inputs=m.inputs, outputs=m.outputs)
    np.savez(folder / "exact.npz", **exact.outputs)


def make_all(models: Sequence[str], folder: Path, batches: str) -> None:
    threads = str(max(1, (os.cpu_count() or 1) // len(models)))
    command = [sys.executable, __file__, "--batches", batches, "--make", str(folder), "--models"]
    environment = {**os.environ, "OMP_NUM_THREADS": threads}
    processes = {model: subprocess.Popen([*command, model], env=environment) for model in models}
    failed = [model for model, process in processes.items() if process.wait()]
    if failed:
        raise SystemExit(f"could not make {', '.join(failed)}")


def heats_of(folder: Path, batches: Sequence[int], builds: int, builders: Builders) -> list[Heat]:
    bundle = Bundle.open(folder / "bundle")
    work = work_of(bundle, None, folder / "reference")
    reference = bundle.reference()
    with np.load(folder / "exact.npz", allow_pickle=False) as arrays:
        exact = Reference(reference.batch, reference.sizes, reference.inputs, dict(arrays))
    truth = Truth(reference=reference, exact=exact, bound=bundle.manifest.bounds["plan"].value)
    plain = msgspec.json.decode((folder / "plain.json").read_bytes(), type=PlanGraph)
    heats = []
    for batch in batches:
        graphs = {
            True: our_graph(bundle, batch),
            False: msgspec.structs.replace(plain, ranges=ranges_at(bundle, batch)),
        }
        entrants = []
        for ours, graph in graphs.items():
            plans = builders.submit(graph, count=builds, folder=folder / f"{'ours' if ours else 'plain'}-{batch}")
            named = [(graph.name, plan) for plan in plans]
            entrants.append(Entrant(name=graph.name, peer=Plans.name, batch=batch, ours=ours, plans=named))
        heats.append(Heat(work=work, batch=batch, entrants=entrants, truth=lambda: truth))
    return heats


def summary(model: str, batch: int, outcome: Outcome) -> dict[str, Any]:
    """The medians over builds, in ms, and their ratio; None where either side has no right build."""
    found: dict[str, Any] = {"model": model, "batch": batch}
    for side, ours in (("ours", True), ("plain", False)):
        rows = [row for row in outcome.rows if row.ours == ours]
        times = [row.gpu.median_ms for row in rows if row.counts and row.gpu]
        errors = [row.exact_error.rel_l2 for row in rows if row.exact_error and row.exact_error.rel_l2 is not None]
        found[f"{side}_ms"] = statistics.median(times) if times else None
        found[f"{side}_error"] = max(errors) if errors else None
        found[f"{side}_failed"] = [row.reason or "wrong" for row in rows if not row.counts]
    ours_ms, plain_ms = found["ours_ms"], found["plain_ms"]
    found["ratio"] = plain_ms / ours_ms if ours_ms and plain_ms else None
    return found


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--batches", default="1,32")
    parser.add_argument("--builds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "plain_ratio.json")
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    batches = [int(n) for n in arguments.batches.split(",")]
    if arguments.make:
        make(arguments.models[0], arguments.make / arguments.models[0], batches)
        return 0
    with tempfile.TemporaryDirectory() as name, closing(Builders(None)) as builders:
        folder = Path(name)
        make_all(arguments.models, folder, arguments.batches)
        heats = {model: heats_of(folder / model, batches, arguments.builds, builders) for model in arguments.models}
        flat = [(model, heat) for model, of_model in heats.items() for heat in of_model]
        outcomes = race(
            [[heat for _, heat in flat]],
            folder=folder,
            within=WITHIN,
            builds_on_gpu=builds_on_gpu(None),
            progress=Console().progress,
        )
    found = [summary(model, heat.batch, outcome) for (model, heat), outcome in zip(flat, outcomes, strict=True)]
    details = [
        {"model": model, "rows": as_plain(outcome.rows), "states": as_plain(outcome.states)}
        for (model, _), outcome in zip(flat, outcomes, strict=True)
    ]
    runs.write(arguments.out, {"what": "our plans against plain ONNX -> TensorRT", "rows": found, "details": details})
    for row in found:
        print("  ".join(f"{key}={value}" for key, value in row.items()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
