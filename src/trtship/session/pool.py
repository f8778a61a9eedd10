"""Things that one caller at a time may hold, made when they are needed and at most so many."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

T = TypeVar("T")
STARVED = 0.005
"""Seconds of waiting after which a thread comes before all that come later. Until then whoever is there first is
served: a thread that is at work already need not wake up."""


class PoolClosedError(RuntimeError):
    """Nobody is given anything any more."""


class _AllHeldError(Exception):
    """Whoever waits holds all that there may be."""


class _Waiting(Generic[T]):
    """One who waits, since when, and what was put by for it."""

    __slots__ = ("given", "since")

    def __init__(self) -> None:
        self.since, self.given = time.monotonic(), list[T]()


class Pool(Generic[T]):
    """At most `most` of what `make` makes; whoever finds none free waits. Safe from any thread.

    The one that was used last is handed out first: what it has at hand is warm. Where there come to be fewer
    (`shrink`), `retire` is called with each that is handed out no more, by whoever gives it back.
    """

    def __init__(self, make: Callable[[], T], *, most: int, retire: Callable[[T], None] = lambda thing: None) -> None:
        self._make, self._retire, self.most = make, retire, most
        self._free: list[T] = []
        self._retired: list[T] = []
        self._retiring = 0
        self._waiting: list[_Waiting[T]] = []  # who came first, first
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

    def another(self, held: int) -> T | None:
        """One more for who holds so many already; None once that is as many as there may be. One thread at a time may
        hold more than one."""
        try:
            return self.take(held)
        except _AllHeldError:
            return None

    def take(self, held: int = 0) -> T:
        """Raises PoolClosedError."""
        with self._change:
            if self._closed:
                raise PoolClosedError
            if self._free and self._starved() is None:
                return self._free.pop()
            thing = self._wait(held)
            if thing is not None:
                return thing
        try:
            return self._make()
        except BaseException:
            with self._change:
                self._made -= 1
                self._change.notify_all()
            raise

    def _wait(self, held: int) -> T | None:
        """Until there is one; None where one is to be made, and is counted already."""
        mine = _Waiting[T]()
        self._waiting.append(mine)
        try:
            while True:
                if mine.given:
                    return mine.given.pop()
                if self._closed:
                    raise PoolClosedError
                if held >= self.most:  # there may have come to be fewer while it waited
                    raise _AllHeldError
                first = self._starved()
                if first is None or first is mine:
                    if self._free:
                        return self._free.pop()
                    if self._made < self.most:
                        self._made += 1
                        return None
                elif self._free:  # this thread was woken for it, and another has waited for longer
                    first.given.append(self._free.pop())
                    self._change.notify_all()
                self._change.wait()
        finally:
            self._waiting.remove(mine)
            if mine.given:
                self._free += mine.given
                self._change.notify_all()

    def _starved(self) -> _Waiting[T] | None:
        """Who has waited for too long, the longest of them, and has nothing put by."""
        if not self._waiting:
            return None
        first = next((one for one in self._waiting if not one.given), None)
        return first if first is not None and time.monotonic() - first.since > STARVED else None

    def give(self, thing: T) -> None:
        with self._change:
            surplus = self._made - self._retiring > self.most
            if surplus:
                self._retiring += 1
            elif (first := self._starved()) is None:
                self._free.append(thing)
                self._change.notify_all() if self._closed else self._change.notify()
            else:
                first.given.append(thing)
                self._change.notify_all()
        if surplus:
            try:
                self._retire(thing)
            finally:
                with self._change:
                    self._made, self._retiring = self._made - 1, self._retiring - 1
                    self._retired.append(thing)
                    self._change.notify_all()

    @property
    def retired(self) -> int:
        """How many were retired so far."""
        return len(self._retired)

    def give_all(self, things: list[T]) -> None:
        """Each of them, though retiring one raises."""
        for index, thing in enumerate(things):
            try:
                self.give(thing)
            except BaseException:
                self.give_all(things[index + 1 :])
                raise

    def shrink(self, retired: int) -> bool:
        """Wait until one more is retired than `retired` are: the most is one fewer than were made from now on, unless
        one was retired since, or is about to be. False where none would be left. The caller holds none, or it would
        wait for itself."""
        with self._change:
            if self._closed or len(self._retired) > retired:
                return True
            if self._made <= self.most:
                if self._made <= 1:
                    return False
                self.most = self._made - 1
                self._change.notify_all()
        self.give_all(self.idle())
        with self._change:  # one that was about to be made may have failed, and is none to be retired
            while self._made > self.most and len(self._retired) <= retired and not self._closed:
                self._change.wait()
        return True

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
            free, self._free, self._retired = self._free + self._retired, [], []
            self._made = 0
            return free
