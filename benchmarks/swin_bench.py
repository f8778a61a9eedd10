"""Deploy models of models.py, and time each bundle beside its peers.

    python benchmarks/swin_bench.py [--models NAME ...] [--precision fp16] [--batches 1,32,128]
        [--bundle-batch MIN:OPT:MAX] [--builds 3] [--against PEERS] [--peer-path PEER=FOLDER ...]
        [--prepare-within SECONDS] [--bundles DIR] [--out DIR]

Writes DIR/bench_MODEL_PRECISION.json for each model, as soon as it is done, and prints the table. See `trtship bench`
for what is timed and how; everybody starts from inputs of the precision's own type on the GPU.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec
import runs

from trtship.bench import BenchReport
from trtship.cli.bench import show
from trtship.cli.console import Console

SWIN = "swin_t"
PEERS = "eager,compile,torch-tensorrt,onnx-tensorrt"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", nargs="+", default=[SWIN])
    parser.add_argument("--precision", default="fp16")
    parser.add_argument("--batches", default="1,32,128")
    parser.add_argument(
        "--bundle-batch", help="the bundle's own range (default: from the smallest batch to the largest)"
    )
    parser.add_argument("--builds", default="3")
    parser.add_argument("--against", default=PEERS)
    parser.add_argument("--peer-path", action="append", default=[])
    parser.add_argument("--prepare-within", default="1800")
    parser.add_argument("--bundles", type=Path, help="where the bundles stay; one that is there is not made again")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for model in arguments.models:
            bench_one(model, (arguments.bundles or Path(folder)) / f"{model}-{arguments.precision}.trtship", arguments)
    return 0


def bench_one(model: str, bundle: Path, arguments: argparse.Namespace) -> None:
    batches = [int(n) for n in arguments.batches.split(",")]
    if not bundle.exists():
        runs.deploy(
            model, bundle, precision=arguments.precision, batch=arguments.bundle_batch or runs.batch_range(batches)
        )
    command = [*runs.TRTSHIP, "bench", str(bundle), "--json", "--together"]
    command += ["--against", arguments.against, "--batches", arguments.batches, "--builds", arguments.builds]
    command += ["--prepare-within", arguments.prepare_within]
    command += [part for path in arguments.peer_path for part in ("--peer-path", path)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        raise SystemExit(f"{runs.shown(command)} ended with {done.returncode}")
    plain = json.loads(done.stdout)
    target = arguments.out / f"bench_{model}_{arguments.precision}.json"
    about = {"what": "trtship bench", "model": model, "precision": arguments.precision}
    runs.write(target, {**about, "bench_command": runs.shown(command), "report": plain})
    show(msgspec.convert(plain, BenchReport), Console())
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main())
