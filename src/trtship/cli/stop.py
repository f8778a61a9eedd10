"""Signals that end the command: Ctrl-C, SIGTERM and SIGHUP, from its first line until the process is gone.

The first one raises KeyboardInterrupt, and whatever was begun is cleaned up on its way out. Those that follow are
ignored while that happens: people press Ctrl-C more than once. If the interrupt was lost (a package may catch it),
one that comes later is raised again.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from types import FrameType
from typing import Any

from trtship.errors import Cancelled

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_USUAL = (signal.SIG_DFL, signal.default_int_handler)
PATIENCE = 2.0
"""Seconds after an interrupt in which further ones are taken for the same."""

AGAIN_AFTER = 0.02
"""Seconds until an interrupt that came during an import is tried again."""

stops: list[str] = []
"""Names of the signals that told this process to end."""
_state: dict[str, Any] = {"raised": 0.0, "reporting": False}


def install_at_start() -> None:
    """Where this process is the command, end it at the first signal until `install` is called: it has begun nothing
    while it imports what it needs."""
    place = (sys.argv[0] if sys.argv else "").split(os.sep)  # pathlib would be a tenth of the time of --help
    if place[-1] == "trtship" or place[-2:] == ["trtship", "__main__.py"]:
        for number in NUMBERS:
            if signal.getsignal(number) in _USUAL:
                signal.signal(number, _end)


def install() -> dict[int, Any]:
    """Handle the signals that have no handler of somebody else's; returns the handlers before, for `restore`."""
    stops.clear()
    _state.update(raised=0.0, reporting=False)
    before = {int(number): signal.getsignal(number) for number in NUMBERS}
    before = {number: handler for number, handler in before.items() if handler in (*_USUAL, _end, _stop)}
    for number in before:
        signal.signal(number, _stop)
    return before


def reporting() -> None:
    """Ignore the signals from now on: the command has come to its end, and only says so."""
    _state["reporting"] = True


def cancelled() -> Cancelled:
    """Return what the user is told when the command ends by a signal."""
    why = stops[0] if stops and stops[0] != "SIGINT" else "Ctrl-C"
    return Cancelled("cancelled", why=why, do="run it again: nothing half-made was left behind")


def restore(before: dict[int, Any]) -> None:
    """Put back the handlers that `install` replaced."""
    if signal.getsignal(signal.SIGALRM) is _again:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
    for number, handler in before.items():
        signal.signal(number, handler)


def leave(code: int) -> int:
    """Return the exit code, with the signals ignored for good: Python tells of one that comes while it shuts down by a
    traceback, and the libraries after it by their death. A command that was cancelled ends here and now: threads of
    libraries may still be at work, and Python would wait for them."""
    signal.setitimer(signal.ITIMER_REAL, 0)  # of an interrupt that waited for an import
    for number in NUMBERS:
        if signal.getsignal(number) is _stop:
            signal.signal(number, signal.SIG_IGN)
    if code == 130:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # nobody reads it any more
                stream.flush()
        os._exit(code)
    return code


def _end(signum: int, frame: FrameType | None) -> None:
    stops.append(signal.Signals(signum).name)
    os.write(2, f"error: {cancelled()}\n".encode())
    os._exit(Cancelled.exit_code)


def _stop(signum: int, frame: FrameType | None) -> None:
    now = time.monotonic()
    first = not stops
    stops.append(signal.Signals(signum).name)
    if _state["reporting"] or not (first or now - _state["raised"] > PATIENCE):
        return
    _state["raised"] = now
    _interrupt(frame)


def _interrupt(frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, later where a module is being imported: native code that is interrupted while it sets
    itself up may end the process (seen once, SIGSEGV)."""
    if _is_importing(frame) and signal.getsignal(signal.SIGALRM) in (signal.SIG_DFL, _again):
        signal.signal(signal.SIGALRM, _again)
        signal.setitimer(signal.ITIMER_REAL, AGAIN_AFTER)
        return
    raise KeyboardInterrupt(stops[-1])


def _again(signum: int, frame: FrameType | None) -> None:
    if not _state["reporting"]:
        _interrupt(frame)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
