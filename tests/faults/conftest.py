"""Fixtures of the fault suite."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from judging import Judged


@pytest.fixture(scope="session")
def digits(deployed: Callable[[str, str], Path]) -> Callable[[str], Judged]:
    """`digits("fp16")`: the bundle of the digits Swin in a precision."""
    return cache(lambda precision: Judged(deployed("digits", precision)))
