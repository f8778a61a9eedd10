"""Sessions do not survive `fork`: CUDA refuses to work in the child, and threads that a runtime waits for are gone."""

from __future__ import annotations

import os
import weakref
from typing import Any

_open: weakref.WeakSet[Any] = weakref.WeakSet()
FORKED = "forked"


def watch(session: Any) -> None:
    """From now on `session.forked()` is called in every child that is forked."""
    _open.add(session)


_kept: list[Any] = []
"""In a child: never destroyed, since that would call CUDA."""


def _in_child() -> None:
    _kept.extend(_open)
    for session in _kept:
        session.forked()


os.register_at_fork(after_in_child=_in_child)
