"""Which of the candidates that passed is shipped, and by which rule."""

from __future__ import annotations

from collections.abc import Sequence

from trtship.bundle.candidates import Candidate, Latency
from trtship.deployment.search.attempt import Attempt
from trtship.deployment.search.order import IN_WORDS, risk

TIMED = (
    "the fastest at batch {batch} (median GPU time) of those that passed every gate, or a safer one where nothing is "
    "clearly faster than that (95 % intervals apart), and never one that is slower than a safer one. Order of safety: "
    + IN_WORDS
)
UNTIMED = (
    "{why}, so speed is not measured: of those that passed every gate the one with the least estimated time at batch "
    "{batch} (a roofline over its graph), a safer one where that is within 2 %; fp8 and int8 are not shipped "
    "unmeasured, since they are often slower. Order of safety: " + IN_WORDS
)
ALIKE = 1.02


def latency_at(candidate: Candidate, batch: int) -> Latency | None:
    return next((one for one in candidate.latency if one.batch == batch), None)


def choose_timed(attempts: Sequence[Attempt], *, batch: int) -> Attempt | None:
    """The safest than which nothing is clearly faster, and nothing that is safer is faster; None where none passed and
    was timed. The one with the least median always qualifies."""
    timed = [(a, t) for a in _passed(attempts) if (t := latency_at(a.candidate, batch)) is not None]
    timed.sort(key=lambda one: risk(one[0].way))
    least_high = min((t.high for _, t in timed), default=0.0)
    for index, (one, ours) in enumerate(timed):
        if ours.low <= least_high and all(safer.ms >= ours.ms for _, safer in timed[:index]):
            return one
    return None


def choose_untimed(attempts: Sequence[Attempt], estimates: dict[str, float]) -> Attempt | None:
    """By `estimates`, in ms by a candidate's name; None where none passed."""
    fit = [a for a in _passed(attempts) if not a.way.precision.quantized]
    if not fit:
        return None
    least = min(estimates[a.candidate.name] for a in fit)
    return min((a for a in fit if estimates[a.candidate.name] <= ALIKE * least), key=lambda a: risk(a.way))


def _passed(attempts: Sequence[Attempt]) -> list[Attempt]:
    return [a for a in attempts if a.candidate.outcome == "passed"]


def why_not(loser: Attempt, winner: Attempt, *, batch: int, estimates: dict[str, float]) -> str:
    """In words, of one that passed."""
    ours, best = latency_at(loser.candidate, batch), latency_at(winner.candidate, batch)
    name = winner.candidate.name
    if ours is not None and best is not None:
        if ours.ms < best.ms:
            return f"{ours.ms:.4g} ms against {best.ms:.4g} of {name}, which is safer and not clearly slower"
        return f"{ours.ms:.4g} ms at batch {batch}, and {name} takes {best.ms:.4g}"
    if best is not None:
        return "it could not be timed"
    if loser.way.precision.quantized:
        return "not shipped without a measured time: quantized plans are often slower"
    a, b = estimates[loser.candidate.name], estimates[name]
    if a <= ALIKE * b:
        return f"estimated at {a:.3g} ms against {b:.3g} of {name}, which is safer"
    return f"estimated at {a:.3g} ms, and {name} at {b:.3g}"
