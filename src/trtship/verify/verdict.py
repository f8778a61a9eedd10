"""A verdict: what was checked, where, against which bound, and how it ended."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from trtship.input_values import TriedInput
from trtship.measure import Measure
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
    where it was not told apart. `rows` are the bounds of single rows of the reference's edges, by name. `floors` are
    the sizes of an element that outputs count as having at least (`trtship.measure.measure`), by output; `row_floors`
    those of single edge rows. `sizes` are the bounds at other sizes than the usual ones, each as the noise there gives
    it, by `size_key`.
    """

    value: float
    source: str
    own: float | None = None
    rows: dict[str, float] = msgspec.field(default_factory=dict)
    floors: dict[str, float] = msgspec.field(default_factory=dict)
    row_floors: dict[str, dict[str, float]] = msgspec.field(default_factory=dict)
    sizes: dict[str, Bound] = msgspec.field(default_factory=dict)

    def at(self, sizes: Mapping[str, int]) -> Bound:
        """Return the bound at these sizes, the batch's among them: this one where they have none of their own."""
        if not self.sizes:
            return self
        found = [bound for key, bound in self.sizes.items() if _is_at(key, sizes)]
        return found[0] if found else self

    def covers(self, other: Bound) -> bool:
        """Whether all that passes `other` passes this one: it is at least as wide, for every row, at all sizes."""
        if self.own is None or other.own is None:
            return self == other
        if self.sizes or other.sizes:
            same = self.sizes.keys() == other.sizes.keys()
            return same and all(
                ours.covers(theirs)
                for ours, theirs in [
                    (msgspec.structs.replace(self, sizes={}), msgspec.structs.replace(other, sizes={})),
                    *((self.sizes[key], other.sizes[key]) for key in self.sizes),
                ]
            )
        rows = {*self.rows, *other.rows}
        values = [(self.rows.get(row, self.value), other.rows.get(row, other.value)) for row in rows]
        values += [(self.value, other.value), (self.own, other.own)]
        for ours, theirs in [(self.floors, other.floors), *((self.on(row), other.on(row)) for row in other.row_floors)]:
            values += [(ours.get(output, 0.0), floor) for output, floor in theirs.items()]
        return all(ours >= theirs for ours, theirs in values)

    def on(self, row: str) -> dict[str, float]:
        """The floors of an edge row."""
        own = self.row_floors.get(row, {})
        return {name: max(self.floors.get(name, 0.0), own.get(name, 0.0)) for name in {**self.floors, **own}}

    def replaced(self, value: float, source: str) -> Bound:
        """Return a bound of another value, with the subject's own part of this one. What small rows may be off by,
        absolutely, stays as it is."""
        own = self.value if self.own is None else self.own
        share = self.value / value if value else 0.0

        def scaled(floors: dict[str, float]) -> dict[str, float]:
            return {name: floor * share for name, floor in floors.items()}

        rows = {name: scaled(floors) for name, floors in self.row_floors.items()}
        return Bound(value=value, source=source, own=own, floors=scaled(self.floors), row_floors=rows, sizes=self.sizes)

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
            floors=self.floors,
            row_floors=self.row_floors,
            sizes={key: bound.between_runs() for key, bound in self.sizes.items()},
        )


class Verdict(Record, frozen=True):
    """One gate for one subject.

    `subject` is what was run (`graph fp32`, `graph fp16`, `plan`), `gate` what was asked of it: `rel_l2` (against
    eager PyTorch, worst row, at every size), `rel_l2_fp64` (the same in float64), `cosine`, `top1_drop` (points of
    top-1 lost on the evaluation pictures), or the name of a probe. `state` is `passed`, `failed` or `not run`;
    `reason` says why it did not pass, and is empty where it did; `note` is what else should be known, of a pass too.
    `worst` is the figure that `bound` holds against; `limit` is the bound at the sizes where it was measured, where
    that is not `bound.value`. `inputs` are the values that were tried, and `sizes` the sizes; verdicts of earlier
    versions do not tell them.
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
    limit: float | None = None
    inputs: tuple[TriedInput, ...] = ()
    sizes: tuple[dict[str, int], ...] = ()

    @property
    def held_to(self) -> float | None:
        """The largest value of `worst` that passes; None where there is no bound."""
        return self.limit if self.limit is not None or self.bound is None else self.bound.value


def size_key(sizes: Mapping[str, int]) -> str:
    """Return the key of a set of sizes in `Bound.sizes`: `H=512 W=512`."""
    return " ".join(f"{letter}={sizes[letter]}" for letter in sorted(sizes))


def _is_at(key: str, sizes: Mapping[str, int]) -> bool:
    return all(f"{letter}={sizes.get(letter)}" == part for part in key.split() for letter in [part.partition("=")[0]])


def not_run(subject: str, gate: str, reason: str) -> Verdict:
    """What could not be run here: never a pass."""
    return Verdict(subject=subject, gate=gate, state="not run", reason=reason)


def judged(subject: str, gate: str, measures: Sequence[Measure], *, bound: Bound, runtime: str) -> Verdict:
    """Return the verdict on relative L2: it passes when every output is finite and within the bound at its sizes.

    `worst` is the error that takes the largest share of its bound.
    """
    reason, largest, limit = "", None, None
    bad = next((m for m in measures if not m.finite), None)
    if bad is not None or not measures:
        reason = f"NaN or Inf in {bad.output} {_where(bad)}" if bad else "nothing was measured"
    else:
        held = [(m.rel_l2, bound.at(m.sizes).value, m) for m in measures if m.rel_l2 is not None]
        largest, allowed, at = max(held, key=lambda one: (one[0] > one[1], _share(one[0], one[1]), one[0]))
        limit = allowed if allowed != bound.value else None
        if not largest <= allowed:
            reason = f"{at.output} is off by {largest:.3g} {_where(at)}, over the bound {allowed:.3g}"
    return Verdict(
        subject=subject,
        gate=gate,
        state="failed" if reason else "passed",
        reason=reason,
        runtime=runtime,
        bound=bound,
        worst=largest,
        measures=tuple(measures),
        limit=limit,
    )


def _where(measure: Measure) -> str:
    return f"at {', '.join(f'{letter}={size}' for letter, size in measure.sizes.items()) or 'its one shape'}"


def _share(error: float, bound: float) -> float:
    """How much of its bound an error takes."""
    return error / bound if bound else math.inf if error else 0.0
