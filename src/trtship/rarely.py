"""What may be done some times, and then ever more rarely."""

from __future__ import annotations

import time


class Rarely:
    """`times` times, and from then on after a pause each time: of `pause` seconds, then twice as long after each, up
    to `longest`."""

    def __init__(self, times: int, *, pause: float, longest: float) -> None:
        self._times, self._first, self._longest = times, pause, longest
        self._pause, self._next_at = pause, float("-inf")

    @property
    def may(self) -> bool:
        return self._times > 0 or time.monotonic() >= self._next_at

    def did(self) -> None:
        """It was done."""
        self._next_at = time.monotonic() + self._pause
        self._times = max(self._times - 1, 0)
        if self._times == 0:
            self._pause = min(2 * self._pause, self._longest)

    def restart(self) -> None:
        """Once now, and then after the first pause."""
        self._pause, self._next_at = self._first, float("-inf")
