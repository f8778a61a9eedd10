from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from trtship.session.mapping import in_order
from trtship.session.pool import Pool, PoolClosedError


class Pending:
    """One that can be seen."""

    def __init__(self, value: int, log: list[tuple[str, int]]) -> None:
        self.value, self.log = value, log
        log.append(("start", value))

    def result(self) -> int:
        self.log.append(("result", self.value))
        if self.value < 0:
            raise ValueError(self.value)
        return self.value

    def cancel(self) -> None:
        self.log.append(("cancel", self.value))


@pytest.mark.parametrize("ahead", [0, 1, 2, 5])
def test_results_are_in_order_and_no_more_is_taken_than_said(ahead: int) -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(8):
            taken.append(item)
            yield item

    for place, value in enumerate(in_order(lambda item: Pending(item, []), items(), ahead=ahead)):
        assert value == place
        assert len(taken) <= place + ahead + 1
    assert taken == list(range(8))


def test_what_finishes_out_of_order_comes_in_order() -> None:
    with ThreadPoolExecutor(4) as threads:

        def start(item: int) -> Future[int]:
            return threads.submit(lambda: time.sleep(0.01 * (4 - item % 4)) or item)  # type: ignore[func-returns-value]

        assert list(in_order(start, range(12), ahead=4)) == list(range(12))


def test_what_an_item_raises_comes_in_its_turn_and_the_rest_is_cancelled() -> None:
    log: list[tuple[str, int]] = []
    results = in_order(lambda item: Pending(item, log), [1, 2, -3, 4, 5, 6], ahead=2)
    assert next(results) == 1
    assert next(results) == 2
    with pytest.raises(ValueError, match="-3"):
        next(results)
    assert [value for what, value in log if what == "cancel"] == [4, 5]
    assert ("start", 6) not in log


def test_an_iterable_that_fails_gives_what_came_before() -> None:
    def items() -> Iterator[int]:
        yield from (1, 2, 3)
        raise OSError("disk")

    results = in_order(lambda item: Pending(item, []), items(), ahead=5)
    assert [next(results) for _ in range(3)] == [1, 2, 3]
    with pytest.raises(OSError, match="disk"):
        next(results)


def test_stopping_early_cancels_what_was_started() -> None:
    log: list[tuple[str, int]] = []
    for value in in_order(lambda item: Pending(item, log), range(10), ahead=3):
        if value == 1:
            break
    assert [value for what, value in log if what == "cancel"] == [2, 3, 4]


def test_a_pool_makes_no_more_than_it_may_and_everybody_gets_one() -> None:
    made: list[int] = []
    held, most = [0], [0]
    lock = threading.Lock()
    pool: Pool[int] = Pool(lambda: made.append(len(made)) or len(made), most=3)  # type: ignore[func-returns-value]

    def work() -> None:
        for _ in range(50):
            with pool.one():
                with lock:
                    held[0] += 1
                    most[0] = max(most[0], held[0])
                time.sleep(0.0002)
                with lock:
                    held[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) <= 3
    assert most[0] <= 3


def test_a_pool_hands_out_what_was_used_last() -> None:
    numbers = iter(range(9))
    pool = Pool(lambda: next(numbers), most=2)
    first, second = pool.take(), pool.take()
    pool.give(first)
    pool.give(second)
    assert pool.take() == second


def test_making_that_fails_leaves_its_place_to_others() -> None:
    tries: list[int] = []

    def make() -> int:
        tries.append(1)
        if len(tries) == 1:
            raise OSError("no")
        return 7

    pool = Pool(make, most=1)
    with pytest.raises(OSError, match="no"):
        pool.take()
    assert pool.take() == 7


def test_closing_a_pool_waits_for_who_holds_and_refuses_who_comes() -> None:
    pool = Pool(lambda: 1, most=1)
    thing = pool.take()
    closed: list[Any] = []
    thread = threading.Thread(target=lambda: closed.append(pool.close()))
    thread.start()
    waiting: list[str] = []

    def late() -> None:
        try:
            pool.take()
        except PoolClosedError:
            waiting.append("refused")

    other = threading.Thread(target=late)
    time.sleep(0.05)
    other.start()
    other.join(5)
    assert waiting == ["refused"]
    assert not closed
    pool.give(thing)
    thread.join(5)
    assert closed == [[1]]
