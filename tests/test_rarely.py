"""What may be done some times, and then ever more rarely."""

from __future__ import annotations

from clock import Clock
from trtship.rarely import Rarely


def pauses(what: Rarely, clock: Clock, count: int) -> list[int]:
    """Seconds until it may be done, each time."""
    found = []
    for _ in range(count):
        begun = clock.now
        while not what.may:
            clock.now += 1
        what.did()
        found.append(int(clock.now - begun))
    return found


def test_the_pauses_double_up_to_the_longest(clock: Clock) -> None:
    assert pauses(Rarely(0, pause=3, longest=20), clock, 7) == [0, 3, 6, 12, 20, 20, 20]


def test_the_first_times_are_free(clock: Clock) -> None:
    assert pauses(Rarely(4, pause=3, longest=20), clock, 9) == [0, 0, 0, 0, 3, 6, 12, 20, 20]


def test_it_may_be_done_once_where_it_begins_anew(clock: Clock) -> None:
    what = Rarely(2, pause=3, longest=20)
    pauses(what, clock, 6)
    what.restart()
    assert pauses(what, clock, 4) == [0, 3, 6, 12]
    fresh = Rarely(2, pause=3, longest=20)
    fresh.restart()
    assert pauses(fresh, clock, 5) == [0, 0, 3, 6, 12]
