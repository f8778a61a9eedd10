"""Python processes of trtship's own, for work that can crash, or that needs other packages: started, heard, ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO

PACKAGES = Path(__file__).resolve().parents[1]
"""Where this very trtship is imported from."""


def environment(path: Path | None = None) -> dict[str, str]:
    """Ours, with `path` ahead on the import path, and this trtship behind all else."""
    places = [str(path)] if path is not None else []
    places += [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    return {**os.environ, "PYTHONPATH": os.pathsep.join([*places, str(PACKAGES)])}


def start(module: str, *arguments: str, log: Path, path: Path | None = None) -> subprocess.Popen[bytes]:
    """`python -m module`, in a session of its own, so that all that it starts can be ended with it; stderr to `log`."""
    with log.open("wb") as errors:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment(path),
            start_new_session=True,
        )


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill it, and whatever it has started."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def how_it_ended(code: int) -> str:
    """`ended with exit code 1`, or `was ended by SIGSEGV`."""
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def last_words(log: Path) -> str:
    """The last line of `log` that is not empty, cut to 300 characters."""
    with suppress(OSError):
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1][:300] if lines else ""
    return ""


def keep_stdout() -> IO[bytes]:
    """Stdout for the answers alone: whatever else this process prints there goes to stderr from now on."""
    kept = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return kept
