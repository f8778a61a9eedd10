"""Bounds on CPU cores are heeded, and where there are none, onnxruntime chooses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trtship.session.cores import bounded_cores

NO_FILE = Path("/nonexistent/cpu.max")


@pytest.fixture(autouse=True)
def unbounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(os.cpu_count() or 1)))


def test_without_bounds_there_is_none() -> None:
    assert bounded_cores(NO_FILE) is None


@pytest.mark.parametrize(("text", "cores"), [("3", 3), ("4,2", 4), ("0", 1), ("", None), ("many", None)])
def test_omp_num_threads_bounds(monkeypatch: pytest.MonkeyPatch, text: str, cores: int | None) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    assert bounded_cores(NO_FILE) == cores


@pytest.mark.parametrize(
    ("text", "cores"),
    [("max 100000", None), ("200000 100000", 2), ("150000 100000", 2), ("5000 100000", 1), ("?", None)],
)
def test_a_control_groups_quota_bounds(tmp_path: Path, text: str, cores: int | None) -> None:
    (tmp_path / "cpu.max").write_text(text + "\n")
    assert bounded_cores(tmp_path / "cpu.max") == cores


def test_the_least_bound_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    (tmp_path / "cpu.max").write_text("300000 100000\n")
    assert bounded_cores(tmp_path / "cpu.max") == 3


THREADS = """
import os, sys
from trtship.session.onnxruntime import OnnxRuntimeSession
before = len(os.listdir("/proc/self/task"))
session = OnnxRuntimeSession(sys.argv[1])
print(len(os.listdir("/proc/self/task")) - before)
"""


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core: onnxruntime starts no threads in any case")
def test_a_session_starts_no_more_threads_than_it_may(digits_graph: Path) -> None:
    def started(**variables: str) -> int:
        environment = {name: v for name, v in os.environ.items() if name != "OMP_NUM_THREADS"} | variables
        command = [sys.executable, "-c", THREADS, str(digits_graph)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    assert started(OMP_NUM_THREADS="1") == 0
    assert 0 < started(OMP_NUM_THREADS="3") <= 3
