"""The confidence interval of a top-1 drop."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtship.bundle.top1 import held
from trtship.verify import evaluate
from trtship.verify.interval import Z95, paired_interval


def score(b: int, c: int, n: int, d: float) -> float:
    """The score statistic, its restricted maximum of the likelihood found by trying."""
    q = np.linspace(max(0.0, -d), (1 - d) / 2, 100_001)[1:-1]
    likelihood = b * np.log(q + d) + c * np.log(q) + (n - b - c) * np.log(1 - 2 * q - d)
    best = q[np.argmax(likelihood)]
    return float((b - c - n * d) / math.sqrt(n * (2 * best + d - d * d)))


@pytest.mark.parametrize(("b", "c", "n"), [(12, 2, 50), (3, 1, 60), (40, 25, 5000)])
def test_the_ends_are_where_the_score_test_begins_to_reject(b: int, c: int, n: int) -> None:
    low, high = paired_interval(b, c, n)
    assert score(b, c, n, low) == pytest.approx(Z95, abs=1e-3)
    assert score(b, c, n, high) == pytest.approx(-Z95, abs=1e-3)


def test_where_nothing_was_lost_the_interval_is_no_point() -> None:
    low, high = paired_interval(0, 0, 60)
    assert -low == high == pytest.approx(Z95**2 / (60 + Z95**2))


@given(st.integers(0, 40), st.integers(0, 40), st.integers(80, 2000))
def test_it_holds_what_was_seen_and_turns_around_with_the_two(b: int, c: int, n: int) -> None:
    low, high = paired_interval(b, c, n)
    assert -1 <= low < (b - c) / n < high <= 1 or b == c
    assert paired_interval(c, b, n) == pytest.approx((-high, -low), abs=1e-9)


def test_it_covers_the_truth_as_often_as_it_says() -> None:
    """Small losses on 400 pictures, 2000 times: 95 %, within four deviations of that count."""
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(400, [0.015, 0.01, 0.975], size=2000)
    intervals = {pair: paired_interval(*pair, 400) for pair in {(int(b), int(c)) for b, c, _ in drawn}}
    covered = sum(low <= 0.005 <= high for low, high in (intervals[int(b), int(c)] for b, c, _ in drawn))
    assert covered / 2000 == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / 2000))


def test_a_verdict_says_when_the_original_has_nothing_to_lose() -> None:
    target = np.arange(20_000) % 4
    guessed = np.zeros(20_000, int)  # right for one class of four
    nothing = held("plan", "", 0.5, evaluate(guessed, guessed, target), classes=4)
    assert nothing.state == "passed"
    assert nothing.note.startswith("this says nothing: the original itself is right on 25.00 %")
    better = np.where(target == 1, 1, guessed)
    assert held("plan", "", 0.5, evaluate(better, better, target), classes=4).note == ""


def test_a_verdict_says_when_the_pictures_cannot_tell_and_when_they_can() -> None:
    right = np.zeros(20_000, int)
    few = held("plan", "", 0.5, evaluate(right[:60], right[:60], right[:60]))
    assert (few.state, few.note) == ("passed", "too few pictures to tell: the drop lies in -6.02 to 6.02 points (95 %)")
    assert held("plan", "", 0.5, evaluate(right, right, right)).note == ""
    worse = right.copy()
    worse[:400] = 1
    many = held("plan", "", 0.5, evaluate(right, worse, right))
    assert (many.state, many.note) == ("failed", "")
    worse = right[:400].copy()
    worse[:3] = 1
    lost = held("plan", "", 0.5, evaluate(right[:400], worse, right[:400]))
    assert lost.state == "failed"
    assert lost.note.startswith("too few pictures to tell")
