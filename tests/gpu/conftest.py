"""Tests that need an NVIDIA GPU and TensorRT; without them they skip and say why.

With `TRTSHIP_GPU_RESULTS=FILE` the outcomes, and what tests noted with `record_property`, are written there as JSON,
with the machine, the versions, the date and the command of the last run; tests that do not run now keep what the file
has of them, with a date, a command and GPUs of their own.
With several workers (`-n 5 --dist loadfile -m "not alone"`) give each its share of the cores: `OMP_NUM_THREADS=3`; then
`-m alone` for those that ask what the GPU has free.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from trtship.deployment.options import versions
from trtship.family import installed_families
from trtship.gpu import Gpu, list_gpus
from trtship.spec import as_plain

HERE = Path(__file__).parent
_outcomes: dict[str, dict[str, Any]] = {}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = "needs an NVIDIA GPU" if not list_gpus() else "" if installed_families() else "needs TensorRT"
    if reason:
        for item in items:
            if HERE in Path(item.path).parents:
                item.add_marker(pytest.mark.skip(reason=reason))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if "tests/gpu/" in report.nodeid and (report.when == "call" or report.outcome != "passed"):
        noted = dict(report.user_properties)
        _outcomes[report.nodeid.split("tests/gpu/")[1]] = {
            "outcome": report.outcome,
            "seconds": round(report.duration, 2),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": _command(),
            "gpus": [gpu.name for gpu in _gpus()],
            **({"message": report.longreprtext[-2000:]} if report.outcome == "failed" else {}),
            **noted,
        }
        _write()


@cache
def _gpus() -> tuple[Gpu, ...]:
    return tuple(list_gpus())


def _command() -> str:
    return "python -m pytest " + " ".join(sys.argv[1:])


def _merged(target: Path) -> dict[str, dict[str, Any]]:
    """This run's outcomes among those that the file has; what was skipped now takes no other's place."""
    before: dict[str, dict[str, Any]] = json.loads(target.read_text())["tests"] if target.exists() else {}
    ran = {name: one for name, one in _outcomes.items() if one["outcome"] != "skipped" or name not in before}
    return {**before, **ran}


def _write() -> None:
    """After every test: a run that is ended halfway has its results."""
    target = os.environ.get("TRTSHIP_GPU_RESULTS")
    if target and "PYTEST_XDIST_WORKER" not in os.environ:
        document = {
            "what": "tests/gpu",
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": _command(),
            "machine": {
                "platform": f"{platform.system()} {platform.machine()}",
                "python": sys.version.split()[0],
                "gpus": as_plain(_gpus()),
            },
            "versions": {**versions(), **installed_families()},
            "tests": _merged(Path(target)),
        }
        Path(target).write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")


@pytest.fixture(scope="session")
def gpu_cache(stage_cache: Path) -> Path:
    """The stage cache of this test run, which its workers share: a plan's kernels are compiled once."""
    return stage_cache


@pytest.fixture(scope="session")
def swin_t(gpu_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """timm's Swin-T with random weights, deployed here in a precision; each once, and in a process of its own: whether
    TensorRT for RTX multiplies fp32 in TF32 is settled once a process (`trtship.family.tf32`)."""
    folder = tmp_path_factory.mktemp("bundles")

    def deployed(precision: str) -> Path:
        target = folder / f"swin-{precision}.trtship"
        if not target.exists():
            command = [
                sys.executable,
                "-m",
                "trtship",
                "deploy",
                "timm/swin_tiny_patch4_window7_224",
                "--random-weights",
            ]
            command += ["--precision", precision, "--batch", "1:8:32", "-o", str(target), "--quiet"]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
        return target

    return deployed
