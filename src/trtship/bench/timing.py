"""Time several things on one GPU, interleaved, so that a clock that drifts drifts for all of them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from trtship.spec import Milliseconds, Record

ROUNDS = 15
TARGET_MS = 40.0
"""How long one timed block lasts at least: long against a launch, short against a clock's drift."""


class Timing(Record, frozen=True):
    """Milliseconds a batch: the median over rounds, and its 95 % confidence interval (`median_interval`)."""

    median_ms: Milliseconds
    low_ms: Milliseconds
    high_ms: Milliseconds
    rounds: int
    calls: int


class RunnerFailed(Exception):
    """A runner, or the process that it lives in, gave up; its text is the reason."""


class Timed(Protocol):
    """Something that can be timed, here or in another process. Both methods raise RunnerFailed."""

    def calibrate(self) -> int:
        """How many calls a block should have, after a warm-up."""

    def block(self, calls: int) -> float:
        """Milliseconds a call, over so many of them."""


def calls_for(ms: float) -> int:
    """How many calls of `ms` each fill a block."""
    return max(3, min(1000, math.ceil(TARGET_MS / max(ms, 1e-3))))


def median_interval(samples: Sequence[float], *, confidence: float = 0.95) -> tuple[float, float, float]:
    """The median and a distribution-free confidence interval for it, from order statistics.

    The number of samples below the true median is Binomial(n, 1/2), so [x_(k), x_(n+1-k)] holds it with probability
    1 - 2 P(X < k); k is the largest that keeps that at `confidence` (W. J. Conover, Practical Nonparametric
    Statistics, 3.2). With fewer than six samples it is the whole range.
    """
    ordered, n = sorted(samples), len(samples)
    k, tail = 0, 0.0
    while True:
        tail += math.comb(n, k) / 2**n
        if 2 * tail > 1 - confidence or k >= n // 2:
            break
        k += 1
    return statistics.median(ordered), ordered[max(k - 1, 0)], ordered[n - max(k, 1)]


def time_interleaved(
    runs: Mapping[str, Timed], *, rounds: int = ROUNDS, halfway: Callable[[], None] = lambda: None
) -> tuple[dict[str, Timing], dict[str, str]]:
    """The time of each run: A B C, A B C, ...; one block at a moment. Also the reasons of those that failed, which do
    not disturb the others. `halfway` is called once, between two rounds, while the GPU is warm."""
    calls: dict[str, int] = {}
    samples: dict[str, list[float]] = {}
    failed: dict[str, str] = {}
    for name, run in runs.items():
        try:
            calls[name], samples[name] = run.calibrate(), []
        except RunnerFailed as error:
            failed[name] = str(error)
    for number in range(rounds):
        if number == rounds // 2:
            halfway()
        for name in [name for name in samples if name not in failed]:
            try:
                samples[name].append(runs[name].block(calls[name]))
            except RunnerFailed as error:
                failed[name] = str(error)
    return {name: _timing(found, calls[name]) for name, found in samples.items() if name not in failed}, failed


def _timing(samples: Sequence[float], calls: int) -> Timing:
    median, low, high = median_interval(samples)
    return Timing(
        median_ms=round(median, 5), low_ms=round(low, 5), high_ms=round(high, 5), rounds=len(samples), calls=calls
    )
