"""`--precision auto` on the digits Swin and on a Swin-T trained on the same digits: each candidate's accuracy and time.

    python benchmarks/train_swin_t_digits.py --out FOLDER
    python benchmarks/precision_auto.py --swin-t FOLDER [--out FILE]

On a machine with a GPU; without --swin-t, the digits Swin alone. Each is deployed by the real command, with top-1 on
pictures that it was not trained on (the digits Swin: the 60 of its example; Swin-T: all 750 that were held out) and a
drop of at most half a point. The points of the Pareto plot are in `pareto`: GPU ms at the usual batch against top-1 and
relative L2, with what was shipped, what failed its gates and why, and what made a candidate slower than a safer one.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import runs

DIGITS = Path(__file__).resolve().parents[1] / "examples" / "digits"
OPT = 32


def digits_command() -> list[str]:
    return [
        f"{DIGITS / 'model.py'}:digits_swin",
        *("--checkpoint", str(DIGITS / "digits.safetensors")),
        *("--eval", str(DIGITS / "pictures")),
    ]


def swin_t_command(folder: Path) -> list[str]:
    return [
        "timm/swin_tiny_patch4_window7_224",
        *("--model-arg", "num_classes=10"),
        *("--checkpoint", str(folder / "swin_t_digits.safetensors")),
        *("--eval", str(folder / "eval"), "--calib", str(folder / "calib")),
    ]


def deployed(name: str, command: list[str], target: Path, *, budget: str) -> dict[str, Any]:
    """The deploy's own JSON. Raises SystemExit where it fails."""
    whole = [*runs.TRTSHIP, "deploy", *command, "--precision", "auto", "--max-drop", "0.5"]
    whole += ["--batch", f"1:{OPT}:128", "--time-budget", budget, "-o", str(target), "--json"]
    begun = time.monotonic()
    done = subprocess.run(whole, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{runs.shown(whole)} ended with {done.returncode}:\n{done.stdout[-4000:]}")
    result = json.loads(done.stdout)
    return {
        "model": name,
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
    print(f"{row['model']}: eager {eager} ms at batch {OPT}")
    for one in row["pareto"]:
        print(f"  {one['name']:24} {one['outcome']:10} {one['ms']} ms  top-1 {one['top1']}  rel L2 {one['rel_l2']}")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--swin-t", type=Path, metavar="FOLDER", help="what train_swin_t_digits.py wrote")
    parser.add_argument("--time-budget", default="20m", help="for each model (default: 20m)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "precision_auto.json")
    arguments = parser.parse_args()
    commands = {"digits_swin": digits_command()}
    if arguments.swin_t:
        commands["swin_t_digits"] = swin_t_command(arguments.swin_t.resolve())
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        for model, command in commands.items():
            rows.append(deployed(model, command, Path(name) / f"{model}.trtship", budget=arguments.time_budget))
            show(rows[-1])
            sys.stdout.flush()
            runs.write(arguments.out, {"what": "--precision auto: accuracy against latency", "models": rows})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
