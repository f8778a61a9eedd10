"""Turns on a GPU, between processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CHILD = """
import sys, time
from pathlib import Path
from trtship.bench.turns import turn
for _ in range(20):
    with turn(Path(sys.argv[1])):
        log = Path(sys.argv[2])
        with log.open("a") as file:
            file.write("in\\n")
        time.sleep(0.002)
        with log.open("a") as file:
            file.write("out\\n")
"""


def test_no_two_processes_are_in_a_turn_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CHILD, str(tmp_path / "turns"), str(tmp_path / "log")]
    processes = [subprocess.Popen(command) for _ in range(3)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0, 0]
    assert (tmp_path / "log").read_text().split() == ["in", "out"] * 60


def test_torch_compile_times_kernels_in_turns_only(tmp_path: Path) -> None:
    """The compiler's own timing function, on the CPU: what it is asked to time finds the turn taken."""
    code = """
import fcntl, os, sys
from pathlib import Path
from types import SimpleNamespace
from trtship.bench.peers.compile import _time_in_turn
from torch._inductor.runtime.benchmarking import benchmarker
file = Path(sys.argv[1])
seen = []
benchmarker.benchmark_gpu = lambda call, **options: call()
_time_in_turn(SimpleNamespace(turns=file))
def taken():
    descriptor = os.open(file, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        seen.append("taken")
    os.close(descriptor)
benchmarker.benchmark(taken, (), {}, device="cuda")
taken()
print(seen)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "turns")], capture_output=True, text=True)
    assert done.stdout.strip() == "['taken']", done.stderr
