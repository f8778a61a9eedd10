"""How long a whole deploy takes on this machine, cold and warm, and how much memory; and how quick the command starts.

    python benchmarks/deploy_time.py [--json FILE]

Cold is a fresh stage cache; warm is the same command again, once over the bundle that stands there, once to another
place. Memory is the largest sum of resident set sizes over the command and its children, sampled every 50 ms, MiB.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trtship.deployment.options import versions
from trtship.family import installed_families
from trtship.gpu import list_gpus
from trtship.spec import as_plain

SOURCE = "timm/swin_tiny_patch4_window7_224"
PAGE_MIB = os.sysconf("SC_PAGE_SIZE") / 2**20


def resident_mib(root: int) -> float:
    """Sum of the resident sets of a process and all its descendants."""
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                parents[int(entry)] = int(Path(f"/proc/{entry}/stat").read_text().rsplit(")", 1)[1].split()[1])
            except (OSError, IndexError):
                continue
    family, size = {root}, 0
    while len(family) != size:
        size = len(family)
        family |= {pid for pid, parent in parents.items() if parent in family}
    total = 0.0
    for pid in family:
        try:
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_MIB
        except OSError:
            continue
    return total


def run(command: list[str], environment: dict[str, str]) -> dict[str, float]:
    begun = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    peak = 0.0
    drained: list[bytes] = []
    reader = threading.Thread(target=lambda: drained.append(process.stderr.read() if process.stderr else b""))
    reader.start()
    while process.poll() is None:
        peak = max(peak, resident_mib(process.pid))
        time.sleep(0.05)
    seconds = time.perf_counter() - begun
    reader.join()
    if process.returncode:
        raise SystemExit(f"{command} ended with {process.returncode}: {drained[0].decode()}")
    return {"seconds": round(seconds, 2), "peak_mib": round(peak)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    trtship = [sys.executable, "-m", "trtship"]
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "TRTSHIP_CACHE": f"{folder}/cache"}
        deploy = [*trtship, "deploy", SOURCE, "--random-weights", "--precision", "fp16", "-o"]
        rows["cold"] = run([*deploy, f"{folder}/a.trtship"], environment)
        rows["warm, over the bundle that stands there"] = run([*deploy, f"{folder}/a.trtship"], environment)
        rows["warm, to another place"] = run([*deploy, f"{folder}/b.trtship"], environment)
        helps = [run([*trtship, "--help"], environment)["seconds"] for _ in range(5)]
        rows["trtship --help, median of 5"] = {"seconds": round(statistics.median(helps), 3)}
    for name, row in rows.items():
        print(f"{name}: {row}")
    document = {
        "what": f"deploy {SOURCE} --random-weights --precision fp16, whole command",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": "python benchmarks/deploy_time.py " + " ".join(sys.argv[1:]),
        "machine": {
            "platform": f"{platform.system()} {platform.machine()}",
            "python": sys.version.split()[0],
            "cpus": os.cpu_count(),
            "gpus": as_plain(list_gpus()),
        },
        "versions": {**versions(), **installed_families()},
        "rows": rows,
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
