"""Interleaving, without a clock: what is called, in which order, and what a failure does to the others."""

from __future__ import annotations

from trtship.bench.timing import RunnerFailed, calls_for, time_interleaved


class Scripted:
    """Notes its name at each block; says that it takes `ms`; fails at its `fails`-th block (0: at its warm-up)."""

    def __init__(self, name: str, ms: float, journal: list[str], fails: int | None = None) -> None:
        self.name, self.ms, self.journal, self.fails, self.blocks = name, ms, journal, fails, 0

    def calibrate(self) -> int:
        if self.fails == 0:
            raise RunnerFailed("no warm-up")
        return 7

    def block(self, calls: int) -> float:
        assert calls == 7
        self.blocks += 1
        if self.fails == self.blocks:
            raise RunnerFailed(f"block {self.blocks}")
        self.journal.append(self.name)
        return self.ms * self.blocks


def test_blocks_alternate_and_the_median_is_over_rounds() -> None:
    journal: list[str] = []
    runs = {name: Scripted(name, ms, journal) for name, ms in (("a", 1.0), ("b", 2.0))}
    times, failed = time_interleaved(runs, rounds=5, halfway=lambda: journal.append("look"))
    assert journal == [*"abab", "look", *"ababab"]
    assert failed == {}
    assert (times["a"].median_ms, times["b"].median_ms, times["a"].rounds, times["a"].calls) == (3.0, 6.0, 5, 7)


def test_one_that_fails_is_left_out_with_its_reason_and_the_others_go_on() -> None:
    journal: list[str] = []
    runs = {name: Scripted(name, 1.0, journal, fails) for name, fails in (("a", None), ("b", 2), ("c", 0))}
    times, failed = time_interleaved(runs, rounds=3)
    assert journal == ["a", "b", "a", "a"]
    assert set(times) == {"a"}
    assert failed == {"b": "block 2", "c": "no warm-up"}


def test_a_block_has_as_many_calls_as_fill_it_within_reason() -> None:
    assert [calls_for(ms) for ms in (0.0, 0.01, 0.5, 10.0, 1000.0)] == [1000, 1000, 80, 4, 3]
