"""For every candidate that lost to a safer one: what made it slower."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec

from trtship.deployment.making import Common, Made
from trtship.deployment.search.attempt import Attempt
from trtship.deployment.search.choose import latency_at
from trtship.deployment.search.order import risk
from trtship.deployment.stages import GRAPH
from trtship.engine import LAYERS_FILE, PlanLayers
from trtship.engine.slower import Side, why_slower
from trtship.family.profiles import narrowest
from trtship.spec import batch_letter, from_json

Profile = Callable[[Attempt], Mapping[str, float]]
"""Milliseconds of each layer of its plan, by name; empty where they could not be had."""


def with_reasons(attempts: Sequence[Attempt], common: Common, *, batch: int, profile: Profile | None) -> list[Attempt]:
    """The attempts, those that passed with why they are slower than a safer one: at `batch` the fastest of those that
    are faster; where nothing was timed (`profile` is None), the one that is shipped."""
    timed = profile is not None
    times: dict[str, Mapping[str, float]] = {}

    def side(one: Attempt) -> Side:
        name = one.candidate.name
        if profile is not None and name not in times:
            times[name] = profile(one)
        return _side(one, common, batch, times.get(name, {}))

    found = []
    for one in attempts:
        other = _faster(one, attempts, batch) if timed else _shipped(one, attempts)
        if one.candidate.outcome == "passed" and one.made is not None and other is not None:
            lines = why_slower(side(one), side(other))
            one = msgspec.structs.replace(one, candidate=msgspec.structs.replace(one.candidate, slower=lines))
        found.append(one)
    return found


def _faster(one: Attempt, attempts: Sequence[Attempt], batch: int) -> Attempt | None:
    ours = latency_at(one.candidate, batch)
    safer = [
        (theirs.ms, index)
        for index, a in enumerate(attempts)
        if risk(a.way) < risk(one.way) and (theirs := latency_at(a.candidate, batch)) is not None
    ]
    if ours is None or not safer or min(safer)[0] >= ours.ms:
        return None
    return attempts[min(safer)[1]]


def _shipped(one: Attempt, attempts: Sequence[Attempt]) -> Attempt | None:
    shipped = next(a for a in attempts if a.candidate.outcome == "shipped")
    return shipped if risk(shipped.way) < risk(one.way) else None


def _side(one: Attempt, common: Common, batch: int, milliseconds: Mapping[str, float]) -> Side:
    made = one.made
    assert isinstance(made, Made)
    layers = from_json(made.plan.read(LAYERS_FILE), PlanLayers, what=LAYERS_FILE)
    letter = batch_letter(made.inputs)
    sizes = {name: batch if name == letter else r.opt for name, r in common.ranges.items()}
    shapes = {spec.name: spec.with_sizes(sizes) for spec in made.inputs}
    index = narrowest(made.build.profiles, shapes)
    graph = made.typed.folder / GRAPH
    return Side(one.candidate.name, graph, layers, profile=index, milliseconds=milliseconds)
