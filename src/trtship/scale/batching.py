"""What Triton is told to do with many requests: from measured speeds, and left at its defaults where there are none.

* *Preferred batch sizes* are those measured ones whose throughput is at least GAIN times that of every smaller one. One
  row is none: Triton runs a preferred size the moment it has one, and would never put requests together.
* *The queue delay* is the time of the smallest measured batch. A request that comes alone then waits at most as long as
  the model would have run anyway: its latency at most doubles.
* *Instances*, where `end to end` was measured as well: while one copies, another computes. n of them keep the GPU busy
  for `n t / e` of the time, t being a batch's GPU time and e its time from host memory and back; the fewest that reach
  BUSY are asked for, at the largest preferred size, and no more than MOST, since each holds activations of its own.
"""

from __future__ import annotations

import math

import msgspec

from trtship.scale.speeds import Speed, Speeds
from trtship.spec import ShapeRange

GAIN = 1.05
"""Less than that is no more than what builds of one plan differ by."""
BUSY = 0.95
MOST = 4


class Batching(msgspec.Struct, frozen=True):
    """`delay_us` in microseconds, None for Triton's default; `why` says where each figure comes from."""

    preferred: tuple[int, ...]
    delay_us: int | None
    instances: int
    why: tuple[str, ...]


def batching_of(speeds: Speeds | None, batch: ShapeRange | None, *, what: str, asked: int | None) -> Batching:
    """For a model that takes `batch` (None: requests are not put together). `what` was, or was not, measured; `asked`
    is the number of instances that the user wants, None to take it from the speeds."""
    fitting = tuple(s for s in speeds.found if batch is None or s.batch in batch) if speeds else ()
    source = speeds.source if speeds else ""
    preferred, delay, why = _queue(fitting, source, batch, what)
    instances, reason = _instances(fitting, preferred, source, asked)
    return Batching(preferred, delay, instances, (*why, reason))


def _queue(
    speeds: tuple[Speed, ...], source: str, batch: ShapeRange | None, what: str
) -> tuple[tuple[int, ...], int | None, tuple[str, ...]]:
    if batch is None or batch.max == 1:
        return (), None, ()
    default = "preferred_batch_size and max_queue_delay are Triton's defaults"
    if not speeds:
        return (), None, (f"{default}: the speed of {what} was not measured",)
    told = ", ".join(f"{s.ms:.3f} ms at batch {s.batch}" for s in speeds)
    if len(speeds) == 1:
        return (), None, (f"{default}: the speed of {what} was measured at one batch only ({told})",)
    preferred = preferred_sizes(speeds)
    if not preferred:
        return (), None, (f"{default}: no larger batch was faster per row ({told}; {source})",)
    delay = max(1, round(1000 * speeds[0].ms))
    return (
        preferred,
        delay,
        (
            f"preferred_batch_size: the sizes that give {GAIN - 1:.0%} or more rows a second above any smaller one "
            f"({told}; {source})",
            f"max_queue_delay: the time of batch {speeds[0].batch}, so that a request that comes alone takes at most "
            "twice as long",
        ),
    )


def preferred_sizes(speeds: tuple[Speed, ...]) -> tuple[int, ...]:
    """Of speeds that ascend by batch."""
    found: list[int] = []
    best = 0.0
    for one in speeds:
        rate = one.batch / one.ms
        if one.batch > 1 and best and rate >= GAIN * best:
            found.append(one.batch)
        best = max(best, rate)
    return tuple(found)


def _instances(
    speeds: tuple[Speed, ...], preferred: tuple[int, ...], source: str, asked: int | None
) -> tuple[int, str]:
    if asked is not None:
        return asked, f"{asked} instance(s), as asked"
    size = max(preferred, default=max((s.batch for s in speeds), default=0))
    found = next((s for s in speeds if s.batch == size), None)
    if found is None or found.end_to_end_ms is None:
        return 1, "one instance, Triton's default: what a second would hide was not measured"
    wanted = math.ceil(BUSY * found.end_to_end_ms / found.ms)
    count = max(1, min(MOST, wanted))
    return count, (
        f"{count} instance(s): at batch {size} the GPU computes for {found.ms:.3f} of the {found.end_to_end_ms:.3f} ms "
        f"that a batch takes from host memory and back ({source})"
    )
