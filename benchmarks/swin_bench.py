"""Deploy models of models.py, and time each bundle beside its peers.

    python benchmarks/swin_bench.py [--models NAME ...] [--precision fp16] [--batches 1,32,128]
        [--bundle-batch MIN:OPT:MAX] [--builds 3] [--against PEERS] [--peer-path PEER=FOLDER ...]
        [--prepare-within SECONDS] [--at-once N] [--bundles DIR] [--out DIR]

Writes DIR/bench_MODEL_PRECISION.json for each model, as soon as it is done, and prints the table. See `trtship bench`
for what is timed and how; everybody starts from inputs of the precision's own type on the GPU.

Compiling is most of the time, and most of it runs on one core for each peer. `--at-once 2` prepares two models at the
same time; both are ready before the first is timed, and while one is timed the other's processes wait idle.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import runs

from trtship.bench import bench
from trtship.bench.original import options_of, original_of
from trtship.bundle import Bundle
from trtship.cli.bench import peer_paths, show
from trtship.cli.console import Console
from trtship.progress import Progress
from trtship.spec import as_plain

SWIN = "swin_t"
START = multiprocessing.get_context("spawn")
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
    parser.add_argument("--at-once", type=int, default=1, metavar="N", help="models that are prepared at the same time")
    parser.add_argument("--bundles", type=Path, help="where the bundles stay; one that is there is not made again")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for first in range(0, len(arguments.models), arguments.at_once):
            models = arguments.models[first : first + arguments.at_once]
            places = {
                model: (arguments.bundles or Path(folder)) / f"{model}-{arguments.precision}.trtship"
                for model in models
            }
            turns = Turns(len(models))
            # processes: PyTorch's random numbers and its tracing are of one model at a time
            running = [
                START.Process(target=bench_one, args=(m, place, arguments, turns)) for m, place in places.items()
            ]
            for process in running:
                process.start()
            for process in running:
                process.join()
            if any(process.exitcode for process in running):
                return 1
    return 0


class Turns:
    """All are ready before the first is timed, and one is timed, to its end, at a time."""

    def __init__(self, count: int) -> None:
        self._ready, self._timing = START.Barrier(count), START.Lock()

    def take(self) -> None:
        with suppress(threading.BrokenBarrierError):  # another failed before it was ready: no need to wait for it
            self._ready.wait()
        self._timing.acquire()

    def end(self, *, taken: bool) -> None:
        if taken:
            self._timing.release()
        else:
            self._ready.abort()


class Told(Progress):
    """Tells of one model's stages on stderr, and takes its turn before its first timing."""

    def __init__(self, model: str, turns: Turns) -> None:
        self._model, self._turns, self._has_turn = model, turns, False

    def started(self, name: str, detail: str) -> None:
        if name == "time" and not self._has_turn:
            self._turns.take()
            self._has_turn = True
        self.note(f"{name} {detail}")

    def note(self, text: str) -> None:
        print(f"[{self._model}] {text}", file=sys.stderr, flush=True)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """The turn is over, or given up, when the block ends."""
        try:
            yield
        finally:
            self._turns.end(taken=self._has_turn)


def bench_one(model: str, place: Path, arguments: argparse.Namespace, turns: Turns) -> None:
    batches = [int(n) for n in arguments.batches.split(",")]
    if not place.exists():
        runs.deploy(
            model, place, precision=arguments.precision, batch=arguments.bundle_batch or runs.batch_range(batches)
        )
    told = Told(model, turns)
    with told.turn():
        bundle = Bundle.open(place)
        options = options_of(bundle)
        report = bench(
            bundle,
            original_of(bundle, options, progress=told),
            options,
            against=arguments.against.split(","),
            batches=batches,
            builds=int(arguments.builds),
            peer_paths=peer_paths(arguments.peer_path),
            within=float(arguments.prepare_within),
            together=True,
            progress=told,
        )
    target = arguments.out / f"bench_{model}_{arguments.precision}.json"
    about = {"what": "trtship bench", "model": model, "precision": arguments.precision}
    runs.write(target, {**about, "report": as_plain(report)})
    show(report, Console())
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main())
