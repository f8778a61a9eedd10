"""The confidence interval of a difference of two proportions, seen on the same things."""

from __future__ import annotations

import math
from collections.abc import Callable

Z95 = 1.959964
"""Of the standard normal distribution, two-sided, for 95 %."""


def paired_interval(first_only: int, second_only: int, total: int, *, z: float = Z95) -> tuple[float, float]:
    """The interval of p(first) - p(second), each in -1..1, where `first_only` of `total` things have the first
    property alone and `second_only` the second alone.

    Tango's score interval ("Equivalence test and confidence interval for the difference in proportions for the
    paired-sample design", Statist. Med. 17, 1998): the differences d that the score test does not reject,

        |b - c - n d| <= z sqrt(n (2 q(d) + d (1 - d))),    q the restricted maximum-likelihood estimate of p(c),
        q(d) = (sqrt(w^2 + 8 n c d (1 - d)) - w) / (4 n),   w = (2 n - b + c) d - b - c.

    It holds its level for small samples and rare differences; where none was seen it is +-z^2 / (n + z^2), not 0.
    """
    b, c, n = first_only, second_only, total
    if n == 0:
        return -1.0, 1.0

    def score(d: float) -> float:
        w = (2 * n - b + c) * d - b - c
        q = (math.sqrt(max(w * w + 8 * n * c * d * (1 - d), 0.0)) - w) / (4 * n)
        spread = math.sqrt(max(n * (2 * q + d * (1 - d)), 0.0))
        distance = b - c - n * d
        return distance / spread if spread else math.copysign(math.inf, distance) if distance else 0.0

    seen = (b - c) / n
    return _root(score, z, -1.0, seen), _root(score, -z, seen, 1.0)


def _root(score: Callable[[float], float], level: float, low: float, high: float) -> float:
    """Where the falling `score` passes `level`, to 1e-12."""
    while high - low > 1e-12:
        middle = (low + high) / 2
        low, high = (middle, high) if score(middle) > level else (low, middle)
    return (low + high) / 2
