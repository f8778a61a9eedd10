"""Processes that time things on one GPU take turns."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trtship.files import cache_root
from trtship.gpu import list_gpus


def turns_file() -> Path:
    """That of the first GPU which this process sees, for all benchmarks that a user runs on it at the same time."""
    gpus = list_gpus()
    folder = cache_root() / "turns"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / (gpus[0].uuid if gpus else "cpu")


@contextmanager
def turn(file: Path) -> Iterator[None]:
    """Nobody else is in a turn on the same file while the block runs. Not to be nested."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
