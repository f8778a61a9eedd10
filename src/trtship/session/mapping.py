"""A stream of items through something that works ahead: results in order, so many at a time and no more."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Generic, Protocol, TypeVar

from trtship.errors import InputError

T = TypeVar("T")
R = TypeVar("R", covariant=True)


class Pending(Protocol[R]):
    """A result to come. (`concurrent.futures.Future` is one.)"""

    def result(self) -> R:
        """Wait for it; raises what went wrong."""

    def cancel(self) -> object:
        """Nobody will ask for it."""


class Done(Generic[T]):
    """A result that is there."""

    def __init__(self, value: T) -> None:
        self._value = value

    def result(self) -> T:
        return self._value

    def cancel(self) -> None:
        pass


def in_turn(items: Iterable[T]) -> Iterator[T]:
    """`iter(items)`. Raises InputError for what is none."""
    try:
        return iter(items)
    except TypeError:
        raise InputError(
            f"map takes batches, and this is a {type(items).__name__}",
            why="they are taken one by one",
            do="pass a list of them, or whatever else can be iterated over",
        ) from None


def in_order(start: Callable[[T], Pending[R]], items: Iterable[T], *, ahead: int) -> Generator[R, None, None]:
    """The results of `start(item)`, in the order of the items; at most `ahead` items are taken before their turn.

    What an item raises, or taking one, is raised in its turn, after the results before it. Where the caller stops
    early, what was started is cancelled.
    """
    waiting: deque[Pending[R]] = deque()
    source, fault = in_turn(items), None
    try:
        while True:
            try:
                item = next(source)
                waiting.append(start(item))
                del item  # the caller may want its memory back
            except StopIteration:
                break
            except Exception as error:
                fault = error
                break
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
        if fault is not None:
            raise fault
    finally:
        for pending in waiting:
            pending.cancel()
