"""Which nodes to hold in a higher precision, so that the gates are met with the least time lost."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from trtship.deployment.making import Common
from trtship.deployment.search.attempt import Attempt, attempt
from trtship.deployment.search.estimate import node_costs
from trtship.deployment.search.gates import gates_of
from trtship.deployment.search.sensitivity import Meter, Part, sensitivities
from trtship.deployment.stages import GRAPH, Stages
from trtship.deployment.way import Way
from trtship.spec import Precision, batch_letter
from trtship.verify import Reference

if TYPE_CHECKING:
    from trtship.bundle.candidates import Candidate

MARGIN = 0.7
"""Of the bound that a mixture aims for: the rows that it is tried on are few."""
TRIES = 4
"""Mixtures that are built and verified; each aims for half the error of the one before."""
SHARE = 0.5
"""Of the time that is left goes into halving the sensitive parts, at most `SECONDS`."""
SECONDS = 300.0


def search_mixed(
    stages: Stages,
    common: Common,
    plain: Attempt,
    *,
    ranges: Mapping[str, float] | None,
    until: float,
    tried: Callable[[Attempt], None],
) -> bool:
    """Mixtures of the precision that failed plain, one after the other until one passes; each is told to `tried`.

    Returns whether one did; no mixture is begun after `until`."""
    precision, graph = plain.way.precision, common.fast.folder / GRAPH
    aim = MARGIN * _bound(plain.candidate, gates_of(stages.options))
    with (
        stages.progress.stage("measure sensitivity", f"of {precision.value}, node by node"),
        Meter(graph, precision, reference_of(common), ranges=ranges, scope=stages.options.scope) as meter,
    ):
        now = time.monotonic()
        stop = now + min(SECONDS, SHARE * (until - now))
        parts = sensitivities(meter, enough=aim, until=stop, progress=stages.progress)
        lost = lost_ms(stages, common, precision)
        seen: set[tuple[str, ...]] = set()
        for _ in range(TRIES):
            kept = least_kept(meter, parts, lost, aim=aim, until=until)
            aim /= 2
            if not kept or kept in seen:
                continue
            if len(kept) == len(meter.nodes) or time.monotonic() > until:
                return False
            seen.add(kept)
            one = attempt(stages, common, Way(precision=precision, kept=kept))
            tried(one)
            if one.candidate.outcome == "passed":
                return True
    return False


def _bound(plain: Candidate, gates: dict[str, float]) -> float:
    """On the relative L2 of a mixture: the tightest of those that the plain precision was held against. The cosine of
    two vectors of one length at a distance d of each other is 1 - d^2 / 2. Top-1 gives no bound of its own: then half
    of what the plain precision had."""
    held = [v for v in plain.verdicts if v.gate == "rel_l2" and v.bound is not None and v.subject != "graph fp32"]
    bounds = [v.bound.value for v in held if v.bound is not None]
    bounds += [gates["--max-rel-l2"]] if "--max-rel-l2" in gates else []
    bounds += [math.sqrt(2 * (1 - gates["--min-cosine"]))] if "--min-cosine" in gates else []
    tightest = min(bounds, default=math.inf)
    if plain.rel_l2 is not None and plain.rel_l2 <= tightest:
        return plain.rel_l2 / 2
    return tightest


def reference_of(common: Common) -> Reference:
    """The original's rows."""
    model, letter = common.model, batch_letter(common.model.inputs)
    return Reference.read(
        lambda name: common.original.read(f"reference/{name}"),
        inputs=model.inputs,
        outputs=model.export.outputs,
        sizes={name: r.opt for name, r in common.ranges.items() if name != letter},
    )


def lost_ms(stages: Stages, common: Common, precision: Precision) -> dict[str, float]:
    """What it costs to hold each node in the higher precision, by name: estimated, in ms at the usual batch."""
    graph, batch = common.fast.folder / GRAPH, usual_batch(common)
    kinds = {"fp8": ("FLOAT8E4M3FN", "FLOAT16"), "int8": ("INT8", "FLOAT16"), "bf16": ("BFLOAT16", "FLOAT")}
    low, full = kinds.get(precision.value, ("FLOAT16", "FLOAT"))
    fast, slow = (node_costs(graph, batch=batch, tf32=True, kind=kind) for kind in (low, full))
    return {name: slow[name] - fast[name] for name in fast}


def usual_batch(common: Common) -> int:
    letter = batch_letter(common.model.inputs)
    return common.ranges[letter].opt if letter is not None else int(common.model.inputs[0].shape[0] or 1)


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
