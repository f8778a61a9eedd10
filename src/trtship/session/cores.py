"""How many CPU cores a process may use, where that is fewer than the machine has."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
"""`QUOTA PERIOD` in microseconds, or `max PERIOD`: https://docs.kernel.org/admin-guide/cgroup-v2.html"""


def bounded_cores(cpu_max: Path = CPU_MAX) -> int | None:
    """The least of what `OMP_NUM_THREADS`, the process's CPU affinity and its control group allow; None where none of
    them bounds it. (onnxruntime heeds none of the three: beside other work its threads then wait for each other.)"""
    bounds = []
    with suppress(ValueError):
        bounds.append(int(os.environ.get("OMP_NUM_THREADS", "").split(",")[0]))
    allowed = len(os.sched_getaffinity(0))
    if allowed < (os.cpu_count() or allowed):
        bounds.append(allowed)
    with suppress(OSError, ValueError):  # no such control, or "max"
        quota, period = cpu_max.read_text().split()
        bounds.append(-(-int(quota) // int(period)))
    return max(1, min(bounds)) if bounds else None
