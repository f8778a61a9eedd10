"""An axis of a chart, and where its ticks are."""

from __future__ import annotations

import math

import msgspec


class Axis(msgspec.Struct, frozen=True, kw_only=True):
    """From `low` to `high`. `ticks` where not every round number is to have one."""

    label: str
    low: float
    high: float
    log: bool = False
    ticks: tuple[float, ...] | None = None

    def at(self, value: float) -> float:
        """0 at `low`, 1 at `high`."""
        if self.log:
            return math.log(value / self.low) / (math.log(self.high / self.low) or 1.0)
        return (value - self.low) / ((self.high - self.low) or 1.0)

    @property
    def marks(self) -> tuple[float, ...]:
        """Where the ticks are."""
        if self.ticks is not None:
            return self.ticks
        wide = self.log and self.high / self.low >= 5
        return _log_ticks(self.low, self.high) if wide else _even_ticks(self.low, self.high)


def number(value: float) -> str:
    """Short: `0.5`, `2000`, `1e-4`, with a power of ten below a hundredth."""
    if value == 0 or abs(value) >= 0.01:
        return f"{value:.6g}"
    mantissa, exponent = f"{value:.3e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def _log_ticks(low: float, high: float) -> tuple[float, ...]:
    """1, 2, 5 of each decade; of many decades, 1 alone, and of very many not each."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    steps = (1, 2, 5) if last - first <= 3 else (1,)
    skip = max(1, (last - first) // 6)
    found = [m * 10.0**e for e in range(first, last + 1) if e % skip == 0 for m in steps]
    return tuple(t for t in found if low <= t <= high)


def _even_ticks(low: float, high: float) -> tuple[float, ...]:
    """Every 1, 2 or 5 times a power of ten, about five of them."""
    rough = (high - low) / 5 or 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    return tuple(round(n * step, 12) for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1))
