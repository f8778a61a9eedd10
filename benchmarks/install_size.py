"""How much disk trtship takes: what runs bundles (`[rtx]`) beside what makes them as well (`[make,rtx]`).

    python benchmarks/install_size.py [--keep FOLDER] [--json FILE]

Each is installed by pip, with constraints.txt, into a virtual environment of its own that has nothing else, not even
pip. A package's size is that of its files as installed, the .pyc files that pip compiles among them. In the first
environment it is also timed how fast Python starts with trtship: whole processes, the median of 9.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = ("rtx", "make,rtx")
STARTS = {
    "python": ("-c", "pass"),
    "import numpy": ("-c", "import numpy"),
    "import trtship": ("-c", "import trtship"),
    "trtship.load": ("-c", "import trtship; trtship.load"),
    "trtship --help": ("-m", "trtship", "--help"),
}
TIMES = 9
COUNT = """
import json
from importlib.metadata import distributions
found = {}
for one in distributions():
    paths = {file.locate().resolve() for file in one.files or ()}
    found[one.metadata["Name"]] = sum(path.stat().st_size for path in paths if path.is_file())
print(json.dumps(found))
"""


def sizes(python: Path) -> dict[str, int]:
    """The bytes of every package that this Python has, the largest first."""
    done = subprocess.run([python, "-c", COUNT], capture_output=True, text=True, check=True)
    return dict(sorted(json.loads(done.stdout).items(), key=lambda item: (-item[1], item[0])))


def install(home: Path, extras: str) -> tuple[Path, float]:
    """A new environment with trtship[extras], and how many seconds pip took."""
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    source = home / "source"  # a build/ that pip leaves in the checkout would get into the next wheel
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q"]
    begun = time.monotonic()
    subprocess.run([*command, "-c", str(ROOT / "constraints.txt"), f"{source}[{extras}]"], check=True)
    return python, time.monotonic() - begun


def starts(python: Path) -> dict[str, float]:
    """Milliseconds from the start of a process to its end."""
    return {
        name: round(1e3 * statistics.median(_run([python, *command]) for _ in range(TIMES)))
        for name, command in STARTS.items()
    }


def _run(command: Sequence[str | Path]) -> float:
    begun = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd="/")
    return time.perf_counter() - begun


def measure(folder: Path) -> dict[str, Any]:
    rows = []
    for extras in EXTRAS:
        python, seconds = install(folder / extras.replace(",", "-"), extras)
        packages = sizes(python)
        row = {"extras": extras, "bytes": sum(packages.values()), "pip_seconds": round(seconds), "packages": packages}
        rows.append({**row, "starts_ms": starts(python)} if extras == EXTRAS[0] else row)
        print(f"trtship[{extras}]: {row['bytes'] / 1e6:.0f} MB in {len(packages)} packages", file=sys.stderr)
    return {"rows": rows}


def main() -> None:
    import runs

    parser = argparse.ArgumentParser()
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="make the environments there, and leave them")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "install_size.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs.write(arguments.json, measure(arguments.keep or Path(folder)))


if __name__ == "__main__":
    main()
