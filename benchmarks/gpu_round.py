"""All that only a GPU can tell, in the order in which it is missed most, within the time that there is.

    python benchmarks/gpu_round.py --out FOLDER [--minutes 9] [--steps STEP ...]

Each step is a command of its own with its log in FOLDER and what is left of the time; its results are written as they
come, so that a round that is ended loses only the step under way. A table of the steps comes last. The tests run beside
the other steps where there are two GPUs, on the second, but for those that ask what the GPU has free (`alone`), and
those of sessions on both (`several`). The soak takes what is left of the time.

A host's cores are soon the limit: processes of many threads each that share them take minutes for seconds' work. So
every step gets its share (OMP_NUM_THREADS), and threads that wait do not spin (OMP_WAIT_POLICY). `--steps deploy
soak --minutes 33` is a soak of 30 minutes.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from trtship.gpu import list_gpus

ROOT = Path(__file__).resolve().parents[1]
MODEL = "timm/swin_tiny_patch4_window7_224"
DIGITS = ("examples/digits/model.py:digits_swin", "--checkpoint", "examples/digits/digits.safetensors")
"""A small plan, which is opened often."""
WORKERS = 4
SOAK = 30.0
"""Minutes, where as many are left."""
STEPS = ("tests", "deploy", "overhead", "warm_start", "digits", "leaks", "wide", "rounding", "alone", "several", "soak")
LAST = ("alone", "several", "soak")


@dataclass
class Round:
    """The steps, and what came of each: `rows` are name, seconds, how it ended."""

    out: Path
    until: float
    rows: list[tuple[str, float, str]] = field(default_factory=list)

    @property
    def left(self) -> float:
        """Seconds."""
        return self.until - time.monotonic()

    def command(self, step: str) -> list[str]:
        names = {"digits": "digits", "leaks": "digits", "wide": "wide", "rounding": "wide"}
        name, python = names.get(step, "swin"), sys.executable
        bundle = str(self.out / f"{name}.trtship")
        script = [python, str(ROOT / "benchmarks" / f"{'session_overhead' if step == 'overhead' else step}.py"), bundle]
        suite = [python, "-m", "pytest", str(ROOT / "tests" / "gpu"), "-q", "-p", "no:cacheprovider", "-m"]
        match step:
            case "tests":
                return [*suite, "not alone", "-n", str(WORKERS), "--dist", "loadfile"]
            case "alone":
                return [*suite, "alone"]
            case "several":
                return [*suite[:3], str(ROOT / "tests" / "gpu" / "test_several_gpus.py"), *suite[4:-1]]
            case "deploy" | "digits" | "wide":
                source = DIGITS if step == "digits" else (MODEL, "--random-weights")
                command = [python, "-m", "trtship", "deploy", *source, "--precision", "fp16"]
                return [*command, "--batch", "1:32:128" if step == "wide" else "1:8:32", "-o", bundle, "--force"]
            case "soak":
                minutes = max(0.5, min(SOAK, self.left / 60 - 0.5))
                settles = ["--warm-up", f"{min(60, 20 * minutes):.0f}", "--every", "2"]
                return [*script, "--minutes", f"{minutes:.1f}", *settles, "--out", str(self.out / "soak.json")]
        return [*script, "--out", str(self.out / f"{script[1].rsplit('/', 1)[1][:-3]}.json")]

    def run(self, step: str, *, gpu: int, threads: int) -> None:
        begun = time.monotonic()
        if self.left <= 0:
            self.rows.append((step, 0.0, "not begun: no time was left"))
            return
        gpus = list_gpus() if step == "several" else list_gpus()[gpu : gpu + 1]
        environment = {
            **os.environ,
            "CUDA_VISIBLE_DEVICES": ",".join(one.uuid for one in gpus),
            "OMP_NUM_THREADS": str(threads),
            "OMP_WAIT_POLICY": "PASSIVE",
            "PYTHONUNBUFFERED": "1",
            "TRTSHIP_GPU_RESULTS": str(self.out / "gpu_suite.json"),
        }
        with (self.out / f"{step}.log").open("w") as log:
            process = subprocess.Popen(self.command(step), stdout=log, stderr=log, env=environment, cwd=ROOT)
            try:
                ended = f"ended with {process.wait(timeout=self.left)}"
            except subprocess.TimeoutExpired:
                process.terminate()
                process.wait()
                ended = "ended by the time limit"
        self.rows.append((step, time.monotonic() - begun, ended))
        print(f"{step}: {ended} after {self.rows[-1][1]:.0f} s", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    arguments = parser.parse_args()
    gpus = list_gpus()
    if not gpus:
        raise SystemExit("no NVIDIA GPU here: all of this needs one")
    arguments.out.mkdir(parents=True, exist_ok=True)
    suite = ROOT / "benchmarks" / "results" / "gpu_suite.json"
    if not (arguments.out / suite.name).exists():
        shutil.copy(suite, arguments.out / suite.name)  # tests that are not reached keep what they last said
    whole = Round(arguments.out.resolve(), time.monotonic() + 60 * arguments.minutes)
    cores = os.cpu_count() or 1
    rest = [step for step in STEPS if step in arguments.steps and step not in ("tests", *LAST)]
    beside = len(gpus) > 1 and "tests" in arguments.steps and bool(rest)
    of_tests = max(1, cores // (WORKERS * (2 if beside else 1)))
    if "tests" in arguments.steps and not beside:
        whole.run("tests", gpu=0, threads=of_tests)
    tests = threading.Thread(target=whole.run, args=("tests",), kwargs={"gpu": 1, "threads": of_tests})
    if beside:
        tests.start()
    for step in rest:
        whole.run(step, gpu=0, threads=max(1, cores // 2 if beside else cores))
    if beside:
        tests.join()
    for step in LAST:
        if step in arguments.steps:
            whole.run(step, gpu=0, threads=cores)
    for step, seconds, ended in whole.rows:
        print(f"{step:12} {seconds:6.0f} s  {ended}")
    return int(any(ended != "ended with 0" for _, _, ended in whole.rows))


if __name__ == "__main__":
    raise SystemExit(main())
