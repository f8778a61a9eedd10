"""The gates of a search, and what a candidate's verdicts say of them."""

from __future__ import annotations

import msgspec

from trtship.bundle.candidates import Candidate
from trtship.deployment.options import DeployOptions
from trtship.verify import Verdict


def gates_of(options: DeployOptions) -> dict[str, float]:
    """The bounds that were asked for, by their options."""
    found = {"--max-rel-l2": options.max_rel_l2, "--min-cosine": options.min_cosine}
    if options.eval_dir is not None:
        found["--max-drop"] = options.max_drop
    return {name: value for name, value in found.items() if value is not None}


def measured(candidate: Candidate, verdicts: tuple[Verdict, ...]) -> Candidate:
    """`candidate` with its figures: the plan's where it ran, else those of the graph in its precision."""
    for subject in ("plan", f"graph {candidate.precision.value}", "graph fp32"):
        own = [v for v in verdicts if v.subject == subject and v.state != "not run"]
        if own:
            break
    cosines = [m.cosine for v in own for m in v.measures if v.gate == "rel_l2" and m.cosine is not None]
    rounding = next((v.worst for v in own if v.gate == "rel_l2"), None)
    e = next((v.evaluation for v in own if v.evaluation is not None), None)
    return msgspec.structs.replace(
        candidate,
        verdicts=verdicts,
        rel_l2=rounding,
        cosine=min(cosines) if cosines and rounding is not None else None,
        top1=None if e is None else e.top1,
        drop=None if e is None else e.drop,
        agreement=None if e is None else e.agreement,
    )


def judged(candidate: Candidate) -> Candidate:
    """`candidate` as passed or failed by its verdicts, with the first reason; the verdicts have them all."""
    failed = [v for v in candidate.verdicts if v.state == "failed"]
    more = f"; and {len(failed) - 1} more" if len(failed) > 1 else ""
    reason = f"{failed[0].subject}, {failed[0].gate}: {failed[0].reason}{more}" if failed else ""
    return msgspec.structs.replace(candidate, outcome="failed" if failed else "passed", reason=reason)


def plan_is_broken(candidate: Candidate) -> bool:
    """Whether the plan says NaN or Inf where the graph that it was built from passed everything."""
    failed = [v for v in candidate.verdicts if v.state == "failed"]
    return {v.subject for v in failed} == {"plan"} and any(not m.finite for v in failed for m in v.measures)
