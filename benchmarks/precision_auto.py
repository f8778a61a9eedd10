"""`--precision auto` on the digits Swin and on a Swin-T trained on the same digits: each candidate's accuracy and time.

    python benchmarks/train_swin_t_digits.py --out FOLDER
    python benchmarks/precision_auto.py --swin-t FOLDER [--models swin_t_digits] [--ahead] [--out FILE]

On a machine with a GPU; without --swin-t, the digits Swin alone. Models that are not run again keep their place in
FILE. Where time on the machine is short, the same command with --ahead first: it only builds and verifies the
candidates, all at the same time, and leaves them in the stage cache, where the run proper finds them and times them.

Each is deployed by the real command, with top-1 on pictures that it was not trained on (the digits Swin: the 60 of
its example; Swin-T: those in FOLDER/eval) and a drop of at most half a point. The points of the Pareto plot are
in `pareto`: GPU ms at the usual batch against top-1 and relative L2, with what was shipped, what failed its gates and
why, and what made a candidate slower than a safer one.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import runs

from trtship.gpu import list_gpus
from trtship.spec import Precision

DIGITS = Path(__file__).resolve().parents[1] / "examples" / "digits"
DIGITS_SWIN, SWIN_T = "digits_swin", "swin_t_digits"
OPT = 32
BATCH = {DIGITS_SWIN: f"1:{OPT}:128", SWIN_T: f"1:{OPT}:{OPT}"}


def digits_command() -> list[str]:
    return [
        f"{DIGITS / 'model.py'}:digits_swin",
        *("--checkpoint", str(DIGITS / "digits.safetensors")),
        *("--eval", str(DIGITS / "pictures")),
        *("--batch", BATCH[DIGITS_SWIN]),
    ]


def swin_t_command(folder: Path) -> list[str]:
    return [
        "timm/swin_tiny_patch4_window7_224",
        *("--model-arg", "num_classes=10"),
        *("--checkpoint", str(folder / "swin_t_digits.safetensors")),
        *("--eval", str(folder / "eval"), "--calib", str(folder / "calib")),
        *("--batch", BATCH[SWIN_T]),
    ]


def auto(command: list[str], target: Path) -> list[str]:
    return [*runs.TRTSHIP, "deploy", *command, "--precision", "auto", "--max-drop", "0.5", "-o", str(target)]


def make_ahead(command: list[str], folder: Path) -> None:
    """Every precision's candidate at the same time, each by a deploy of its own with its share of the cores; all of
    them for the first, until it has made what they have in common."""
    first, *others = Precision
    common = threading.Event()
    share = max(1, (os.cpu_count() or 1) // len(Precision))
    threads = [threading.Thread(target=_make_candidate, args=(command, first.value, folder, None, common))]
    threads[0].start()
    common.wait()
    threads += [
        threading.Thread(target=_make_candidate, args=(command, one.value, folder, share, common)) for one in others
    ]
    for thread in threads[1:]:
        thread.start()
    for thread in threads:
        thread.join()


def _make_candidate(
    command: list[str], precision: str, folder: Path, cores: int | None, common: threading.Event
) -> None:
    """Ended as soon as the candidate has passed or failed: times taken beside the others' work would say nothing."""
    whole = [*auto(command, folder / f"{precision}.trtship"), "--candidates", precision]
    variables = os.environ | ({} if cores is None else {"OMP_NUM_THREADS": str(cores)})
    try:
        with subprocess.Popen(
            whole, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=variables
        ) as process:
            assert process.stderr is not None
            for line in process.stderr:
                print(f"[{precision}] {line}", end="", file=sys.stderr, flush=True)
                if line.startswith("set the precision"):
                    common.set()
                if re.search(rf"\b{precision}: (passed|failed)\b", line):
                    process.terminate()
    finally:
        common.set()


def deployed(name: str, command: list[str], target: Path, *, budget: str) -> dict[str, Any]:
    """The deploy's own JSON. Raises SystemExit where it fails."""
    whole = [*auto(command, target), "--time-budget", budget, "--json"]
    begun = time.monotonic()
    done = subprocess.run(whole, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{runs.shown(whole)} ended with {done.returncode}:\n{done.stdout[-4000:]}")
    result = json.loads(done.stdout)
    return {
        "model": name,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": [gpu.name for gpu in list_gpus()],
        "command": runs.shown(whole),
        "seconds": round(time.monotonic() - begun, 1),
        "pareto": [point(candidate) for candidate in result["choice"]["candidates"]],
        "choice": result["choice"],
        "stages": result["stages"],
    }


def point(candidate: dict[str, Any]) -> dict[str, Any]:
    """A candidate as a point of the plot: its time at the usual batch, or why there is none."""
    times = {one["batch"]: one["ms"] for one in candidate["latency"]}
    figures = ("name", "outcome", "rel_l2", "cosine", "top1", "drop", "plan_mib", "reason", "slower")
    return {**{name: candidate[name] for name in figures}, "ms": times.get(OPT), "kept": len(candidate["kept"])}


def show(row: dict[str, Any]) -> None:
    eager = {one["batch"]: one["ms"] for one in row["choice"]["eager"]}.get(OPT)
    print(f"{row['model']}, {row['date']}: eager {eager} ms at batch {OPT}")
    for one in row["pareto"]:
        print(f"  {one['name']:24} {one['outcome']:10} {one['ms']} ms  top-1 {one['top1']}  rel L2 {one['rel_l2']}")


def standing(file: Path) -> list[dict[str, Any]]:
    """The rows that an earlier run wrote there."""
    if not file.exists():
        return []
    document = json.loads(file.read_text())
    known = {"date": document["date"], "machine": [gpu["name"] for gpu in document["machine"]["gpus"]]}
    return [{**known, **row} for row in document["models"]]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--swin-t", type=Path, metavar="FOLDER", help="what train_swin_t_digits.py wrote")
    parser.add_argument(
        "--models", nargs="+", choices=(DIGITS_SWIN, SWIN_T), help="only these (default: all there are)"
    )
    parser.add_argument("--ahead", action="store_true", help="build and verify the candidates, time and write nothing")
    parser.add_argument("--time-budget", default="20m", help="for each model (default: 20m)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "precision_auto.json")
    arguments = parser.parse_args()
    commands = {DIGITS_SWIN: digits_command()}
    if arguments.swin_t:
        commands[SWIN_T] = swin_t_command(arguments.swin_t.resolve())
    commands = {name: command for name, command in commands.items() if name in (arguments.models or commands)}
    rows = [row for row in standing(arguments.out) if row["model"] not in commands]
    with tempfile.TemporaryDirectory() as name:
        for model, command in commands.items():
            if arguments.ahead:
                make_ahead(command, Path(name))
                continue
            rows.append(deployed(model, command, Path(name) / f"{model}.trtship", budget=arguments.time_budget))
            show(rows[-1])
            sys.stdout.flush()
            runs.write(arguments.out, {"what": "--precision auto: accuracy against latency", "models": rows})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
