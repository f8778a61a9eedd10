"""A test that must end: what waits for ever fails, in place of the whole run."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import pytest


@contextmanager
def in_time(seconds: int) -> Iterator[None]:
    """Fail in the main thread when the block takes longer, by an error that no code takes for one of the system's."""

    def late(number: int, frame: FrameType | None) -> None:
        pytest.fail(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
