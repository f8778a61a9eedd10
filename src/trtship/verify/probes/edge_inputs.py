"""Inputs at the edges of the data's range give what the original gives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import msgspec
import numpy as np

from trtship.measure import Measure
from trtship.verify.edges import Edges
from trtship.verify.probes.base import Attack, Probe, taken
from trtship.verify.verdict import Bound, Verdict, judged, not_run

Run = tuple[tuple[str, ...], dict[str, Any], dict[str, Any]]
"""The names of a batch's rows, its feeds, and what the original says."""


class EdgeInputs(Probe):
    """The reference's edges (`trtship.verify.edges`), each row within its own bound, or the subject's where it has
    none. A row of which the original itself says NaN or Inf is left out, and told."""

    name: ClassVar[str] = "edge_inputs"
    claim: ClassVar[str] = "inputs at the edges of the range should give what the original gives"
    at_other_sizes: ClassVar[bool] = True

    def run(self, attack: Attack) -> Verdict | None:
        edges = attack.reference.edges
        if edges is None:
            return not_run(attack.subject, self.name, "the bundle has no edge rows; deploy the model again")
        runs = _one_each(edges) if attack.reference.batch is None else _batches(edges, attack.batches[-1])
        finite = dict(zip(edges.names, edges.finite, strict=True))
        found: dict[str, list[Measure]] = {name: [] for name in edges.names}
        for names, feeds, expected in runs:
            outputs = attack.run(feeds)
            for place, name in enumerate(names):
                row = slice(None) if attack.reference.batch is None else slice(place, place + 1)
                floors = attack.bound.on(name)
                wanted, said = taken(expected, row), taken(outputs, row)
                found[name] += attack.measured(wanted, said, floors, batch=_rows(feeds))
        verdicts = {name: self._row(attack, name, found[name]) for name in edges.names if finite[name]}
        if not verdicts:
            return not_run(attack.subject, self.name, "the original says NaN or Inf of every edge row")
        left_out = ", ".join(name for name, fine in finite.items() if not fine)
        note = f"the original itself says NaN or Inf of {left_out}" if left_out else ""
        return msgspec.structs.replace(max(verdicts.values(), key=_how_bad), note=note)

    def _row(self, attack: Attack, name: str, measures: list[Measure]) -> Verdict:
        value = attack.bound.rows.get(name, attack.bound.value)
        bound = Bound(value=value, source=attack.bound.source)
        verdict = judged(attack.subject, self.name, measures, bound=bound, runtime=attack.session.runtime)
        if verdict.state == "passed":
            return msgspec.structs.replace(verdict, measures=())
        return msgspec.structs.replace(verdict, reason=f"{self.claim}: the row {name!r}: {verdict.reason}")


def _how_bad(verdict: Verdict) -> tuple[bool, float]:
    """Failures first, then by how much of its bound a row takes; what is not finite takes more than anything."""
    assert verdict.bound is not None
    share = np.inf if verdict.worst is None else verdict.worst / verdict.bound.value if verdict.bound.value else 0.0
    return verdict.state == "failed", share


def _rows(feeds: dict[str, Any]) -> int:
    return len(next(iter(feeds.values())))


def _one_each(edges: Edges) -> Iterator[Run]:
    for index, name in enumerate(edges.names):
        yield (name,), taken(edges.inputs, index), taken(edges.outputs, index)


def _batches(edges: Edges, batch: int) -> Iterator[Run]:
    """All rows in batches of one size, the first rows again where the last batch has room."""
    count = len(edges.names)
    for begin in range(0, count, batch):
        order = np.arange(begin, begin + batch) % count
        yield tuple(edges.names[i] for i in order), taken(edges.inputs, order), taken(edges.outputs, order)
