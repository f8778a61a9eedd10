"""Things that one caller at a time may hold, made when they are needed and at most so many."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

T = TypeVar("T")


class PoolClosedError(RuntimeError):
    """Nobody is given anything any more."""


class Pool(Generic[T]):
    """At most `most` of what `make` makes; whoever finds none free waits. Safe from any thread.

    The one that was used last is handed out first: what it has at hand is warm.
    """

    def __init__(self, make: Callable[[], T], *, most: int) -> None:
        self._make, self.most = make, most
        self._free: list[T] = []
        self._made = 0
        self._closed = False
        self._change = threading.Condition(threading.Lock())

    @contextmanager
    def one(self) -> Iterator[T]:
        """Hold one while the block runs."""
        thing = self.take()
        try:
            yield thing
        finally:
            self.give(thing)

    def take(self) -> T:
        """Raises PoolClosedError."""
        with self._change:
            while not self._free:
                if self._closed:
                    raise PoolClosedError
                if self._made < self.most:
                    self._made += 1
                    break
                self._change.wait()
            else:
                if self._closed:
                    raise PoolClosedError
                return self._free.pop()
        try:
            return self._make()
        except BaseException:
            with self._change:
                self._made -= 1
                self._change.notify()
            raise

    def give(self, thing: T) -> None:
        with self._change:
            self._free.append(thing)
            self._change.notify_all() if self._closed else self._change.notify()

    def idle(self) -> list[T]:
        """Take all that nobody holds; `give` each back."""
        with self._change:
            free, self._free = self._free, []
            return free

    def close(self) -> list[T]:
        """Wait until nobody holds any, and let nobody take one any more; all that were made."""
        with self._change:
            self._closed = True
            self._change.notify_all()
            while len(self._free) < self._made:
                self._change.wait()
            free, self._free = self._free, []
            self._made = 0
            return free
