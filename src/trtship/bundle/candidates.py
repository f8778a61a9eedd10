"""What `--precision auto` tried: every candidate with its accuracy, its times, and why it was or was not shipped."""

from __future__ import annotations

from typing import Literal

from trtship.spec import Precision, Record
from trtship.verify import Verdict

CANDIDATES = "evidence/candidates.json"

Outcome = Literal["shipped", "passed", "failed", "not tried"]


class Latency(Record, frozen=True):
    """GPU time of one batch in ms: the median, and its confidence interval from `low` to `high` (95 %)."""

    batch: int
    ms: float
    low: float
    high: float


class Candidate(Record, frozen=True):
    """One way to make the plan, and what came of it.

    `kept` are the ONNX nodes that were held in a higher precision than `precision`, by name. `outcome` is `passed`
    for one that met every gate and was not the fastest, `not tried` for one that time or the machine did not allow;
    `reason` says why it was not shipped. `rel_l2` and `cosine` are against eager PyTorch, the worst row; `top1` in
    percent, `drop` in points. `latency` is empty where nothing was timed. `slower` says what made it slower than a
    safer precision.
    """

    name: str
    precision: Precision
    kept: tuple[str, ...] = ()
    outcome: Outcome = "not tried"
    reason: str = ""
    rel_l2: float | None = None
    cosine: float | None = None
    top1: float | None = None
    drop: float | None = None
    agreement: float | None = None
    latency: tuple[Latency, ...] = ()
    plan_mib: float | None = None
    seconds: float = 0.0
    verdicts: tuple[Verdict, ...] = ()
    slower: tuple[str, ...] = ()


class Choice(Record, frozen=True):
    """The search: what it asked for, the rule it chose by, and every candidate in the order in which they were tried.

    `gates` are the bounds by the option that set them, `eager` the original's times on the same GPU, `timed_on` that
    GPU's name (None: no speed was measured), `complete` whether every candidate was tried within the time allowed.
    """

    rule: str
    gates: dict[str, float]
    candidates: tuple[Candidate, ...]
    eager: tuple[Latency, ...] = ()
    timed_on: str | None = None
    seconds: float = 0.0
    complete: bool = True
