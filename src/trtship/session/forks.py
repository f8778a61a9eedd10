"""Sessions do not survive `fork`: CUDA refuses to work in the child, and threads that a runtime waits for are gone."""

from __future__ import annotations

import os
import weakref
from typing import Any

_open: weakref.WeakSet[Any] = weakref.WeakSet()
FORKED = "forked"


def watch(session: Any) -> None:
    """From now on a child that is forked finds `session.unusable` to be FORKED."""
    _open.add(session)


def _in_child() -> None:
    for session in list(_open):
        session.unusable = FORKED


os.register_at_fork(after_in_child=_in_child)
