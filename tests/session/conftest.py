"""Sessions over a GPU that is none (`fake_gpu`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_gpu import Opened, Opens, fake_session


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
