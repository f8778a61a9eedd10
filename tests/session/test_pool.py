"""Who is given what, and when."""

from __future__ import annotations

import threading
import time
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


def test_fewer_from_now_on_retires_what_is_given_back() -> None:
    retired = list[int]()
    pool = Pool(count().__next__, most=3, retire=retired.append)
    held = [pool.take() for _ in range(3)]
    assert pool.shrink()
    assert retired == []  # all are in use
    pool.give(held[1])
    assert (retired, pool.most) == ([1], 2)
    pool.give(held[0])
    pool.give(held[2])
    assert retired == [1]
    assert pool.shrink()  # one that nobody holds goes at once
    assert len(retired) == 2
    assert not pool.shrink()
    assert pool.take() not in retired
    ended = threading.Thread(target=pool.close)
    ended.start()
    pool.give(next(iter({0, 1, 2} - set(retired))))
    ended.join(10)
    assert not ended.is_alive()


def test_one_that_was_made_alone_is_the_last() -> None:
    pool = Pool(count().__next__, most=3)
    assert not pool.shrink()
    pool.give(pool.take())
    assert not pool.shrink()
    assert pool.most == 3


def test_those_retired_are_among_all_that_were_made() -> None:
    pool = Pool(count().__next__, most=2)
    held = [pool.take(), pool.take()]
    for thing in held:
        pool.give(thing)
    assert pool.shrink()
    assert sorted(pool.close()) == [0, 1]


def test_who_holds_all_that_there_may_be_does_not_wait_for_another() -> None:
    pool, found = Pool(count().__next__, most=3), list[object]()
    held = [pool.take() for _ in range(3)]

    def all_of_them() -> None:
        mine = [pool.take()]
        while (one := pool.another(len(mine))) is not None:
            mine.append(one)
        found.append(len(mine))

    collecting = threading.Thread(target=all_of_them)
    collecting.start()
    pool.give(held[0])  # it has one, and waits for two more
    time.sleep(0.05)
    assert pool.shrink()
    pool.give(held[1])
    assert pool.shrink()  # and now for none
    collecting.join(10)
    assert found == [1]
