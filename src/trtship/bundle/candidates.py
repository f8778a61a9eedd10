"""What `--precision auto` tried: every candidate with its accuracy, its times, and why it was or was not shipped."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from trtship.bundle.bundle import Bundle
from trtship.errors import BundleError
from trtship.spec import BatchSize, Milliseconds, Precision, Record, from_json
from trtship.verify import Verdict

CANDIDATES = "evidence/candidates.json"
MAX_CANDIDATES = 1_000
"""A search tries about ten."""

Outcome = Literal["shipped", "passed", "failed", "not tried"]


class Latency(Record, frozen=True):
    """GPU time of one batch in ms: the median, and its confidence interval from `low` to `high` (95 %)."""

    batch: BatchSize
    ms: Milliseconds
    low: Milliseconds
    high: Milliseconds


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
    GPU's name (None: no speed was measured), `notes` what the user should know of the outcome, `complete` whether every
    candidate was tried within the time allowed.
    """

    rule: str
    gates: dict[str, float]
    candidates: tuple[Candidate, ...]
    eager: tuple[Latency, ...] = ()
    notes: tuple[str, ...] = ()
    timed_on: str | None = None
    seconds: float = 0.0
    complete: bool = True


def choice_of(bundle: Bundle) -> Choice | None:
    """The search that chose a bundle's precision; None where that was given.

    Raises BundleCorruptError, SpecError; BundleError for more than `MAX_CANDIDATES`.
    """
    if CANDIDATES not in bundle.manifest.files:
        return None
    found = from_json(bundle.read(CANDIDATES), Choice, what=CANDIDATES)
    if len(found.candidates) > MAX_CANDIDATES:
        raise BundleError(
            f"{bundle.folder / CANDIDATES} is not read",
            why=f"it has {len(found.candidates)} candidates, and {MAX_CANDIDATES} are the most",
            do="deploy the model again",
        )
    return found


COLUMNS = ("candidate", "outcome", "relative L2", "cosine", "top-1", "drop", "GPU ms", "plan MiB", "seconds", "why")


def candidate_rows(candidates: Iterable[Candidate]) -> list[tuple[str, ...]]:
    """`COLUMNS` of each, in words."""
    return [
        (
            c.name,
            c.outcome,
            "" if c.rel_l2 is None else f"{c.rel_l2:.2e}",
            "" if c.cosine is None else f"{c.cosine:.6f}",
            "" if c.top1 is None else f"{c.top1:.2f}",
            "" if c.drop is None else f"{c.drop:.2f}",
            ", ".join(f"{one.ms:.3f} at {one.batch}" for one in c.latency),
            "" if c.plan_mib is None else f"{c.plan_mib:.1f}",
            f"{c.seconds:.1f}",
            c.reason,
        )
        for c in candidates
    ]
