"""Time several things on one GPU, interleaved, so that a clock that drifts drifts for all of them."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trtship.spec import Record

ROUNDS = 15
TARGET_MS = 40.0
"""How long one timed block lasts at least: long against a launch, short against a clock's drift."""


class Timing(Record, frozen=True):
    """Milliseconds a batch: the median over rounds, and its 95 % confidence interval (`median_interval`)."""

    median_ms: float
    low_ms: float
    high_ms: float
    rounds: int
    calls: int


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
    runs: Mapping[str, Callable[[], object]], stream: Any, *, rounds: int = ROUNDS
) -> dict[str, Timing]:
    """GPU time of each run, by CUDA events on `stream`: A B C, A B C, ...; each block as many calls as it needs to last
    `TARGET_MS`. The runs enqueue work on the current stream, which this makes `stream`."""
    import torch

    found: dict[str, list[float]] = {name: [] for name in runs}
    with torch.cuda.stream(stream):
        calls = {name: _calls_for(run, stream) for name, run in runs.items()}
        for _ in range(rounds):
            for name, run in runs.items():
                found[name].append(_block(run, calls[name]))
    return {name: _timing(samples, calls[name]) for name, samples in found.items()}


def time_on_the_clock(runs: Mapping[str, Callable[[], object]], *, rounds: int = ROUNDS) -> dict[str, Timing]:
    """End to end, by the wall clock: each run starts with arrays on the host and returns arrays on the host."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(rounds):
        for name, run in runs.items():
            begun = time.perf_counter()
            for _ in range(5):
                run()
            found[name].append((time.perf_counter() - begun) / 5 * 1e3)
    return {name: _timing(samples, 5) for name, samples in found.items()}


def _calls_for(run: Callable[[], object], stream: Any) -> int:
    for _ in range(3):
        run()
    stream.synchronize()
    return max(3, min(1000, math.ceil(TARGET_MS / max(_block(run, 5), 1e-3))))


def _block(run: Callable[[], object], calls: int) -> float:
    import torch

    event: Any = torch.cuda.Event
    begin, end = event(enable_timing=True), event(enable_timing=True)
    begin.record()
    for _ in range(calls):
        run()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / calls


def _timing(samples: Sequence[float], calls: int) -> Timing:
    median, low, high = median_interval(samples)
    return Timing(
        median_ms=round(median, 5), low_ms=round(low, 5), high_ms=round(high, 5), rounds=len(samples), calls=calls
    )
