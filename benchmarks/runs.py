"""What the benchmark scripts share: deploying, and writing what was measured with all that it depends on."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trtship.deployment.options import versions
from trtship.family import installed_families
from trtship.gpu import list_gpus
from trtship.spec import as_plain

SIDES = {"swin_b_384": 384, "swinv2_t": 256}
TRTSHIP = (sys.executable, "-m", "trtship")


def batch_range(batches: Sequence[int]) -> str:
    ordered = sorted(batches)
    return f"{ordered[0]}:{ordered[len(ordered) // 2]}:{ordered[-1]}"


def deploy(model: str, target: Path, *, precision: str, batch: str) -> None:
    """Deploy `model` of models.py, its inputs and outputs in the plan's own precision: so are the peers'.
    Raises SystemExit where it fails."""
    side = SIDES.get(model, 224)
    command = [*TRTSHIP, "deploy", f"benchmarks/models.py:{model}", "--input", f"input=Bx3x{side}x{side}"]
    command += ["--precision", precision]
    command += ["--batch", batch, "-o", str(target), "--force"]
    if precision == "fp16":
        command += ["--io-dtype", "float16"]
    begun = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-4000:]}")
    print(f"{model} deployed in {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)


def gpu_memory() -> float | None:
    """MiB that this process has on GPUs, as the driver counts; None where it does not tell."""
    asked = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    if shutil.which(asked[0]) is None:
        return None
    done = subprocess.run(asked, capture_output=True, text=True)
    rows = [line.split(", ") for line in done.stdout.splitlines()]
    mine = [used for pid, used in (row for row in rows if len(row) == 2) if pid == str(os.getpid())]
    return float(sum(int(used) for used in mine)) if mine and all(used.isdecimal() for used in mine) else None


def shown(command: Sequence[str]) -> str:
    """A command as a reader would type it."""
    return " ".join("python" if part == sys.executable else part for part in command)


def write(target: Path, document: dict[str, Any]) -> None:
    """`document`, with the machine, the versions, the date and the command of this script."""
    whole = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": "python " + " ".join([f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "machine": {
            "platform": f"{platform.system()} {platform.machine()}",
            "python": sys.version.split()[0],
            "cpus": os.cpu_count(),
            "gpus": as_plain(list_gpus()),
        },
        "versions": {**versions(), **installed_families()},
        **document,
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_suffix(".partial")
    draft.write_text(json.dumps(whole, indent=2) + "\n")
    draft.rename(target)
    print(target, file=sys.stderr)
