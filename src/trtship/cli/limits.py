"""What the machine grants this process, checked before anything that would crash or hang without it."""

from __future__ import annotations

import re
import resource
import sys

from trtship.errors import MachineError

FILES = 64
"""Open files that a verb needs; pipes to its processes are the most of them."""
ROOM = 2**27
"""Bytes that a verb takes beside numpy, at the very least."""
ENOUGH = 8 * 2**30
"""Bytes of address space with which nothing of ours fails to start."""
EXHAUSTED = re.compile(
    r"can(?:'t|not) allocate memory|failed to map segment|bad_alloc|can't start new thread|too many open files",
    re.IGNORECASE,
)
"""How the system, torch and onnxruntime say that a limit is reached."""
RAISE = "free some memory, or raise the limits of this process (ulimit -a shows them)"


def check_limits() -> None:
    """Raises MachineError where the process may open too few files, or use too little memory to start in: numpy's
    OpenBLAS then ends the process, after long attempts."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if files != resource.RLIM_INFINITY and files < FILES:
        raise MachineError(
            "this process may open too few files",
            why=f"it may open {files} at once, and trtship needs {FILES}",
            do="raise the limit (ulimit -n)",
        )
    limits = [resource.getrlimit(one)[0] for one in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    limit = min((one for one in limits if one != resource.RLIM_INFINITY), default=ENOUGH)
    if limit < ENOUGH and (fault := _cannot_start()):
        raise MachineError(
            "this process may use too little memory",
            why=f"it may use {limit / 2**20:.0f} MiB, in which numpy does not start: {fault}",
            do="raise the limit (ulimit -v, ulimit -d), or remove it",
        )


def _cannot_start() -> str:
    """Why numpy cannot be imported in a process with our limits, with some room to work; empty where it can."""
    import subprocess

    command = [sys.executable, "-P", "-c", f"room = bytearray({ROOM}); import numpy, msgspec"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=60, check=False)
    except subprocess.TimeoutExpired:
        return "it was still trying after 60 s"
    lines = done.stderr.strip().splitlines()
    if done.returncode == 0:
        return ""
    return lines[-1].rpartition("error: ")[2] if lines else f"exit code {done.returncode}"


def exhausted(error: BaseException) -> MachineError | None:
    """The error of a limit that was reached, or of memory that ran out, as the user should read it; None for others."""
    if isinstance(error, MemoryError) or EXHAUSTED.search(str(error)):
        why = str(error).strip().splitlines()
        return MachineError(
            "this machine gave no more memory, threads or files", why=why[0] if why else "out of memory", do=RAISE
        )
    return None
