"""Which parts of a graph to hold back, given what each costs and what each contributes to the error."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

from trtship.deployment.search.sensitivity import Meter, Part


def least_kept(
    meter: Meter, parts: Sequence[Part], lost: Mapping[str, float], *, aim: float, until: float = math.inf
) -> tuple[str, ...]:
    """Nodes that, held back, bring the measured error down to `aim`, at the least cost.

    Those that overflow alone, then those with the most error a millisecond, until the error that is predicted, and then
    measured, is small enough; in the end every part that is not needed after all goes back, the dearest first, while
    there is time.
    """

    def price(part: Part) -> float:
        return sum(lost.get(name, 0.0) for name in part.nodes) + 1e-9

    kept = [part for part in parts if part.error == math.inf]
    rest = sorted((p for p in parts if p.error < math.inf), key=lambda p: p.error**2 / price(p))

    def predicted() -> float:
        return math.sqrt(sum(part.error**2 for part in rest))

    def measured(kept: Sequence[Part]) -> float:
        held = {name for part in kept for name in part.nodes}
        return meter.error({name for name in meter.nodes if name not in held})

    while rest and predicted() > aim:
        kept.append(rest.pop())
    while rest and measured(kept) > aim:
        count = max(1, len(kept) // 4)
        kept += [rest.pop() for _ in range(min(count, len(rest)))]
    for part in sorted(kept, key=price, reverse=True):
        without = [one for one in kept if one is not part]
        if part.error < math.inf and time.monotonic() < until and measured(without) <= aim:
            kept = without
    held = {name for part in kept for name in part.nodes}
    return tuple(name for name in meter.nodes if name in held)
