"""Who is given what, and when."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from itertools import count

import pytest

from trtship.session.pool import STARVED, Pool, PoolClosedError


def test_the_one_that_was_used_last_is_handed_out_first() -> None:
    pool = Pool(count().__next__, most=3)
    held = [pool.take() for _ in range(3)]
    for thing in (held[1], held[0], held[2]):
        pool.give(thing)
    assert [pool.take(), pool.take(), pool.take()] == [2, 0, 1]


def test_who_waits_is_served_though_others_come_again_and_again() -> None:
    pool = Pool(count().__next__, most=1)
    ends, served, late = threading.Event(), [0, 0, 0, 0], 0.0

    def greedy(index: int) -> None:
        while not ends.is_set():
            with pool.one():
                served[index] += 1

    threads = [threading.Thread(target=greedy, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        begun = time.monotonic()
        with pool.one():
            late = max(late, time.monotonic() - begun)
            served[3] += 1
    ends.set()
    for thread in threads:
        thread.join()
    assert served[3] == 20
    assert all(served)
    assert late < 100 * STARVED + 2  # of a machine whose cores others have, too


def test_things_are_held_by_one_and_there_are_no_more_than_asked_for() -> None:
    pool, held, wrong = Pool(count().__next__, most=3), set[int](), list[int]()
    lock = threading.Lock()

    def work(seed: int) -> None:
        for turn in range(300):
            with pool.one() as thing:
                with lock:
                    wrong.extend([thing] if thing in held or thing > 2 else [])
                    held.add(thing)
                if (turn + seed) % 40 == 0:
                    time.sleep(2 * STARVED)
                with lock:
                    held.discard(thing)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert sorted(pool.close()) == [0, 1, 2]


def test_where_one_cannot_be_made_the_next_who_waits_tries() -> None:
    tries, may = count(), threading.Event()

    def make() -> int:
        number = next(tries)
        if number == 0:
            may.wait(10)
            raise MemoryError
        return number

    pool, found = Pool(make, most=1), list[object]()

    def take() -> None:
        try:
            found.append(pool.take())
        except MemoryError as error:
            found.append(error)

    threads = [threading.Thread(target=take) for _ in range(2)]
    for thread in threads:
        thread.start()
    may.set()
    for thread in threads:
        thread.join(10)
    assert sorted(map(str, found)) == ["", "1"]


@pytest.mark.parametrize("wait", [0.0, 3 * STARVED])
def test_closing_waits_for_who_holds_one_and_ends_the_waiting_of_others(wait: float) -> None:
    pool, ended = Pool(count().__next__, most=1), list[str]()
    thing = pool.take()

    def waits() -> None:
        try:
            pool.take()
            ended.append("was given one")
        except PoolClosedError:
            ended.append("refused")

    waiting = [threading.Thread(target=waits) for _ in range(3)]
    for one in waiting:
        one.start()
    time.sleep(wait)
    closing = threading.Thread(target=lambda: ended.append(f"all {pool.close()}"))
    closing.start()
    for one in waiting:
        one.join(10)
    assert ended == ["refused"] * 3
    pool.give(thing)
    closing.join(10)
    assert ended[3:] == ["all [0]"]
    with pytest.raises(PoolClosedError):
        pool.take()


def in_thread(work: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    """A thread at work, and what came of it."""
    found = list[object]()
    thread = threading.Thread(target=lambda: found.append(work()), daemon=True)
    thread.start()
    return thread, found


def until(true: Callable[[], bool]) -> None:
    ends = time.monotonic() + 30
    while not true():
        assert time.monotonic() < ends
        time.sleep(0.001)


def test_fewer_from_now_on_waits_for_one_to_be_given_back_and_retires_it() -> None:
    retired = list[int]()
    pool = Pool(count().__next__, most=3, retire=retired.append)
    held = [pool.take() for _ in range(3)]
    shrinking, found = in_thread(lambda: pool.shrink(0))
    until(lambda: pool.most == 2)
    assert (retired, found) == ([], [])  # all are in use
    pool.give(held[1])
    shrinking.join(30)
    assert (retired, found, pool.retired) == ([1], [True], 1)
    pool.give(held[0])
    pool.give(held[2])
    assert retired == [1]
    assert pool.shrink(1)  # one that nobody holds goes at once
    assert len(retired) == 2
    assert not pool.shrink(2)
    assert pool.take() not in retired
    ended = threading.Thread(target=pool.close)
    ended.start()
    pool.give(next(iter({0, 1, 2} - set(retired))))
    ended.join(10)
    assert not ended.is_alive()


def test_two_who_ask_for_fewer_at_once_retire_one() -> None:
    """The second is content with what the first has retired, or is about to."""
    pool, retires = Pool(count().__next__, most=3), threading.Event()
    pool._retire = lambda thing: retires.wait(30) and None
    held = [pool.take() for _ in range(3)]
    asking = [in_thread(lambda: pool.shrink(0)) for _ in range(2)]
    until(lambda: pool.most == 2)
    giving = threading.Thread(target=pool.give, args=(held[0],))
    giving.start()
    time.sleep(0.02)
    assert [found for _, found in asking] == [[], []]  # it is given back, and not retired yet
    retires.set()
    for thread, _ in asking:
        thread.join(30)
    assert [found for _, found in asking] == [[True], [True]]
    assert (pool.most, pool.retired) == (2, 1)
    assert pool.shrink(0)  # who failed before that has more room now
    assert pool.most == 2


def test_where_the_last_but_one_is_still_in_use_the_end_is_not_reached() -> None:
    pool = Pool(count().__next__, most=2)
    held = [pool.take(), pool.take()]
    asking = [in_thread(lambda: pool.shrink(0)) for _ in range(2)]
    until(lambda: pool.most == 1)
    pool.give(held[0])
    for thread, found in asking:
        thread.join(30)
        assert found == [True]
    assert not pool.shrink(1)


def test_one_that_could_not_be_made_is_not_waited_for() -> None:
    tries, begun, fails = count(), threading.Event(), threading.Event()

    def make() -> int:
        number = next(tries)
        if number == 1:
            begun.set()
            fails.wait(30)
            raise MemoryError
        return number

    pool = Pool(make, most=2)
    held = pool.take()

    def take() -> None:
        with pytest.raises(MemoryError):
            pool.take()

    making, _ = in_thread(take)
    assert begun.wait(30)
    shrinking, found = in_thread(lambda: pool.shrink(0))
    until(lambda: pool.most == 1)
    fails.set()
    shrinking.join(30)
    making.join(30)
    assert (found, pool.retired) == ([True], 0)
    pool.give(held)
    assert pool.close() == [held]


def test_closing_ends_the_waiting_for_one_to_be_retired() -> None:
    pool = Pool(count().__next__, most=2)
    held = [pool.take(), pool.take()]
    shrinking, found = in_thread(lambda: pool.shrink(0))
    until(lambda: pool.most == 1)
    closing, ended = in_thread(pool.close)
    shrinking.join(30)
    assert found == [True]  # and what it tries next tells it
    for thing in held:
        pool.give(thing)
    closing.join(30)
    assert [sorted(things) for things in ended] == [[0, 1]]


def test_though_retiring_one_raises_the_others_are_given_back() -> None:
    def fails(thing: int) -> None:
        raise RuntimeError("it cannot be freed")

    pool = Pool(count().__next__, most=3, retire=fails)
    for thing in [pool.take() for _ in range(3)]:
        pool.give(thing)
    with pytest.raises(RuntimeError):
        pool.shrink(0)
    closing, ended = in_thread(pool.close)
    closing.join(30)
    assert [sorted(things) for things in ended] == [[0, 1, 2]]


def test_one_that_was_made_alone_is_the_last() -> None:
    pool = Pool(count().__next__, most=3)
    assert not pool.shrink(0)
    pool.give(pool.take())
    assert not pool.shrink(0)
    assert pool.most == 3


def test_those_retired_are_among_all_that_were_made() -> None:
    pool = Pool(count().__next__, most=2)
    held = [pool.take(), pool.take()]
    for thing in held:
        pool.give(thing)
    assert pool.shrink(0)
    assert sorted(pool.close()) == [0, 1]


def test_who_holds_all_that_there_may_be_does_not_wait_for_another() -> None:
    pool, has_one = Pool(count().__next__, most=3), threading.Event()
    held = [pool.take() for _ in range(3)]

    def all_of_them() -> int:
        mine = [pool.take()]
        has_one.set()
        while (one := pool.another(len(mine))) is not None:
            mine.append(one)
        for one in mine:
            pool.give(one)
        return len(mine)

    collecting, found = in_thread(all_of_them)
    pool.give(held[0])
    assert has_one.wait(30)  # and it waits for two more
    shrinking, _ = in_thread(lambda: pool.shrink(0))
    until(lambda: pool.most == 2)
    pool.give(held[1])
    shrinking.join(30)
    assert pool.shrink(1)  # and now for none; it gives back what it has
    collecting.join(30)
    assert found == [1]
