"""A verdict: what was checked, where, against which bound, and how it ended."""

from __future__ import annotations

from typing import Literal

from trtship.measure import Measure
from trtship.spec import Record
from trtship.verify.evaluate import Evaluation

State = Literal["passed", "failed", "not run"]
Gate = Literal["rel_l2", "top1_drop"]


class Bound(Record, frozen=True):
    """The largest value that passes, and where it comes from."""

    value: float
    source: str


class Verdict(Record, frozen=True):
    """One gate for one subject.

    `subject` is what was run (`graph fp32`, `graph fp16`, `plan`), `gate` what was asked of it: `rel_l2` (against
    eager PyTorch, worst row, at every size) or `top1_drop` (points of top-1 lost on the evaluation pictures).
    `state` is `passed`, `failed` or `not run`; `reason` says why it did not pass, and is empty where it did.
    `worst` is the figure that `bound` holds against.
    """

    subject: str
    gate: Gate
    state: State
    reason: str = ""
    runtime: str = ""
    bound: Bound | None = None
    worst: float | None = None
    measures: tuple[Measure, ...] = ()
    evaluation: Evaluation | None = None


def not_run(subject: str, gate: Gate, reason: str) -> Verdict:
    """What could not be run here: never a pass."""
    return Verdict(subject=subject, gate=gate, state="not run", reason=reason)
