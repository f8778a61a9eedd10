"""Defects of a runtime, not of a graph: a session around a right one that goes wrong as native code does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from trtship.session.base import Session


class Wrapped(Session):
    """Around another session; `_run` is what goes wrong."""

    def __init__(self, inner: Session) -> None:
        self._inner = inner
        self.inputs, self.outputs, self.ranges = inner.inputs, inner.outputs, inner.ranges
        self.runtime = f"{inner.runtime}, with a defect"

    def _release(self) -> None:
        self._inner.close()


class StateLeaks(Wrapped):
    """A tenth of the mean row that the run before gave is added to every row."""

    def __init__(self, inner: Session) -> None:
        super().__init__(inner)
        self._last: dict[str, Any] = {}

    def _run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        found = self._inner.infer(feeds)
        for name, array in found.items():
            clean = array.mean(axis=0)
            array += np.float32(0.1) * self._last.get(name, np.zeros_like(clean))
            self._last[name] = clean
        return found


class BufferKeepsLargerBatch(Wrapped):
    """The last row of a batch smaller than the one before it is what the larger one left there."""

    _kept: dict[str, Any] | None = None

    def _run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        found = self._inner.infer(feeds)
        kept = self._kept
        self._kept = {name: array.copy() for name, array in found.items()}
        for name, array in found.items():
            if kept is not None and len(kept[name]) > len(array):
                array[-1] = kept[name][len(array) - 1]
        return found


class RowUnwritten(Wrapped):
    """The last row of two or more is not written: it keeps what its memory held, which the session has for as long as
    it lives."""

    can_poison: bool = True

    def __init__(self, inner: Session) -> None:
        super().__init__(inner)
        self._memory: dict[str, Any] = {}

    def _run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        found = self._inner.infer(feeds)
        for name, array in found.items():
            memory = self._memory.get(name)
            if memory is None or len(memory) < len(array):
                memory = self._memory[name] = array.copy()
            if self.poison:
                memory[...] = np.nan
            written = max(1, len(array) - 1)
            memory[:written] = array[:written]
            array[...] = memory[: len(array)]
        return found


class ContextsShareMemory(Wrapped):
    """All sessions give their results through one piece of memory."""

    _shared: ClassVar[dict[str, Any]] = {}
    _lock: ClassVar[threading.Lock] = threading.Lock()

    def _run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        found = self._inner.infer(feeds)
        self._shared.update(found)
        time.sleep(0.01)  # as long as a kernel takes to get there
        return {name: self._shared[name] for name in found}


class OddBatch(Wrapped):
    """Rows beyond the last whole tile of two are computed from the row before them."""

    def _run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        found = self._inner.infer(feeds)
        for array in found.values():
            if len(array) % 2 and len(array) > 1:
                array[-1] = array[-2]
        return found


class OutputsSaturate(Wrapped):
    """Results beyond 1 saturate, as in a number format that ends there."""

    def _run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        return {name: np.clip(array, -1, 1) for name, array in self._inner.infer(feeds).items()}


@dataclass(frozen=True)
class SessionDefect:
    name: str
    what: str
    wrap: Callable[[Session], Session]
    caught_by: tuple[str, ...]


SESSION_DEFECTS = (
    SessionDefect("state leaks", "each run adds a tenth of what the last one gave", StateLeaks, ("repeated",)),
    SessionDefect(
        "buffer of a larger batch",
        "the last row of a batch after a larger one is the larger one's",
        BufferKeepsLargerBatch,
        ("after_other_batches",),
    ),
    SessionDefect("output unwritten", "the last row is what was in memory", RowUnwritten, ("poisoned_outputs",)),
    SessionDefect(
        "contexts share memory", "two sessions at once write to one buffer", ContextsShareMemory, ("two_contexts",)
    ),
    SessionDefect("odd batches", "the last row of an odd batch is the one before it", OddBatch, ("rel_l2",)),
    SessionDefect("outputs saturate", "results beyond 1 are 1", OutputsSaturate, ("rel_l2",)),
)
