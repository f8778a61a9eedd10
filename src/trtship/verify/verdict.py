"""A verdict: what was checked, where, against which bound, and how it ended."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import msgspec

from trtship.input_values import TriedInput
from trtship.measure import Measure, worst
from trtship.spec import Record
from trtship.verify.evaluate import Evaluation

State = Literal["passed", "failed", "not run"]

REL_L2, REL_L2_FP64, COSINE, TOP1_DROP = "rel_l2", "rel_l2_fp64", "cosine", "top1_drop"
REL_L2_GIVEN = "rel_l2_given"
"""On inputs that the user gave to `verify`, against the bundle's own fp32 graph."""
COMPARISONS = (REL_L2, REL_L2_FP64, REL_L2_GIVEN, COSINE, TOP1_DROP)
"""The gates that compare with the original; every other gate is a probe (`trtship.verify.probes`)."""


class Bound(Record, frozen=True):
    """The largest value that passes, and where it comes from.

    `own` is the part of a bound on relative L2 that the subject's own rounding has (the rest is the original's), None
    where it was not told apart. `rows` are the bounds of single rows of the reference's edges, by name.
    """

    value: float
    source: str
    own: float | None = None
    rows: dict[str, float] = msgspec.field(default_factory=dict)

    def covers(self, other: Bound) -> bool:
        """Whether all that passes `other` passes this one: it is at least as wide, for every row."""
        if self.own is None or other.own is None:
            return self == other
        rows = {*self.rows, *other.rows}
        values = [(self.rows.get(row, self.value), other.rows.get(row, other.value)) for row in rows]
        return all(ours >= theirs for ours, theirs in [(self.value, other.value), (self.own, other.own), *values])

    def between_runs(self) -> Bound:
        """How far two runs of the same subject on the same rows may be apart, in relative L2.

        Kernels differ by batch, and TensorRT for RTX exchanges them in the background, so that two runs round
        differently. Each error is within `own` of the exact result; they are independent and of equal size, so that
        their difference has twice the variance: sqrt(2) times the bound.
        """
        own = self.value if self.own is None else self.own
        return Bound(
            value=math.sqrt(2) * own,
            source=f"sqrt(2) * {own:.3g}: two runs of one subject, each with the rounding of its own",
        )


class Verdict(Record, frozen=True):
    """One gate for one subject.

    `subject` is what was run (`graph fp32`, `graph fp16`, `plan`), `gate` what was asked of it: `rel_l2` (against
    eager PyTorch, worst row, at every size), `rel_l2_fp64` (the same in float64), `cosine`, `top1_drop` (points of
    top-1 lost on the evaluation pictures), or the name of a probe. `state` is `passed`, `failed` or `not run`;
    `reason` says why it did not pass, and is empty where it did; `note` is what else should be known, of a pass too.
    `worst` is the figure that `bound` holds against. `inputs` are the values that were tried, and `sizes` the sizes;
    verdicts of earlier versions do not tell them.
    """

    subject: str
    gate: str
    state: State
    reason: str = ""
    runtime: str = ""
    bound: Bound | None = None
    worst: float | None = None
    measures: tuple[Measure, ...] = ()
    evaluation: Evaluation | None = None
    note: str = ""
    inputs: tuple[TriedInput, ...] = ()
    sizes: tuple[dict[str, int], ...] = ()


def not_run(subject: str, gate: str, reason: str) -> Verdict:
    """What could not be run here: never a pass."""
    return Verdict(subject=subject, gate=gate, state="not run", reason=reason)


def judged(subject: str, gate: str, measures: Sequence[Measure], *, bound: Bound, runtime: str) -> Verdict:
    """The verdict on relative L2: passes when every output is finite and none is further off than `bound`."""
    largest = worst(measures)
    reason = ""
    if largest is None:
        bad = next((m for m in measures if not m.finite), None)
        reason = f"NaN or Inf in {bad.output} at {bad.sizes}" if bad else "nothing was measured"
    elif not largest <= bound.value:
        bad = max(measures, key=lambda m: m.rel_l2 or 0.0)
        reason = f"{bad.output} is off by {largest:.3g} at {bad.sizes}, over the bound {bound.value:.3g}"
    return Verdict(
        subject=subject,
        gate=gate,
        state="failed" if reason else "passed",
        reason=reason,
        runtime=runtime,
        bound=bound,
        worst=largest,
        measures=tuple(measures),
    )
