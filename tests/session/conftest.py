"""Sessions over a GPU that is none (`fake_gpu`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_gpu import Opened, Opens, fake_session

from trtship.family import kernels
from trtship.family.spares import Spares


@pytest.fixture(autouse=True)
def spares(monkeypatch: pytest.MonkeyPatch) -> Spares:
    """Kernel caches of this test alone."""
    made = Spares()
    monkeypatch.setattr(kernels, "SPARES", made)
    return made


@pytest.fixture
def opens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Opens]:
    """`opens(**options)`: a session, its CUDA and its engine; closed at the end."""
    sessions = []

    def opened(**options: Any) -> Opened:
        session, cuda, engine = fake_session(monkeypatch, tmp_path, **options)
        sessions.append(session)
        return session, cuda, engine

    yield opened
    for session in sessions:
        session.close()
