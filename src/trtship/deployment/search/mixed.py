"""Mixtures: nodes held in a higher precision, so that the gates are met with the least time lost."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from trtship.deployment.making import Common
from trtship.deployment.search.attempt import Attempt, attempt
from trtship.deployment.search.estimate import node_costs
from trtship.deployment.search.gates import gates_of
from trtship.deployment.search.keeping import least_kept
from trtship.deployment.search.sensitivity import Meter, Part, sensitivities
from trtship.deployment.stages import GRAPH, REPORT, Stages
from trtship.deployment.stages.base import graph_digests
from trtship.deployment.way import Way
from trtship.spec import Precision, Record, from_json, to_json

if TYPE_CHECKING:
    from trtship.bundle.candidates import Candidate

MARGIN = 0.7
"""Of the bound that a mixture aims for: the rows that it is tried on are few."""
TRIES = 4
"""Mixtures that are built and verified; each aims for half the error of the one before."""
SHARE = 0.5
"""Of the time that is left goes into halving the sensitive parts, at most `SECONDS`."""
SECONDS = 300.0
KINDS = {
    Precision.FP16: ("FLOAT16", "FLOAT"),
    Precision.BF16: ("BFLOAT16", "FLOAT"),
    Precision.FP8: ("FLOAT8E4M3FN", "FLOAT16"),
    Precision.INT8: ("INT8", "FLOAT16"),
}
"""In which types a node computes, and in which where it is held back."""


class Mixture(Record, frozen=True):
    """The nodes to hold back, of how many that could be."""

    kept: tuple[str, ...]
    of: int


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
    aim = MARGIN * _bound(plain.candidate, gates_of(stages.options))
    precision = plain.way.precision
    mixer = _Mixer(stages, common, precision, ranges, until)
    seen: set[tuple[str, ...]] = set()
    try:
        for _ in range(TRIES):
            found = mixer.mixture(aim)
            aim /= 2
            if not found.kept or found.kept in seen:
                continue
            if len(found.kept) == found.of or time.monotonic() > until:
                return False
            seen.add(found.kept)
            one = attempt(stages, common, Way(precision=precision, kept=found.kept), known=plain.candidate.verdicts)
            tried(one)
            if one.candidate.outcome == "passed":
                return True
    finally:
        mixer.close()
    return False


class _Late(Exception):
    """A mixture for which there was less time than it needs: not to be remembered."""

    def __init__(self, found: Mixture) -> None:
        self.found = found


class _Mixer:
    """Mixtures by what they aim for; each is remembered, and the network is run only for one that is not."""

    def __init__(
        self,
        stages: Stages,
        common: Common,
        precision: Precision,
        ranges: Mapping[str, float] | None,
        until: float,
    ) -> None:
        self._stages, self._common, self._precision = stages, common, precision
        self._ranges, self._until = ranges, until
        now = time.monotonic()
        self._stop = now + min(SECONDS, SHARE * (until - now))
        self._graph = common.fast.folder / GRAPH

    def mixture(self, aim: float) -> Mixture:
        def make(folder: Path) -> None:
            with self._stages.progress.stage("measure sensitivity", f"of {self._precision.value}, part by part"):
                parts = self._parts(aim)
                kept = least_kept(self._meter, parts, self._lost, aim=aim, until=self._until)
            found = Mixture(kept=kept, of=len(self._meter.nodes))
            if time.monotonic() > self._stop:
                raise _Late(found)
            (folder / REPORT).write_bytes(to_json(found))

        key = {
            "graph": graph_digests(self._common.fast),
            "reference": self._common.original.files,
            "precision": self._precision.value,
            "ranges": self._ranges,
            "scope": self._stages.options.scope,
            "batch": self._common.usual_batch,
            "aim": aim,
            **self._stages.part("versions"),
        }
        try:
            entry = self._stages.run("mixture", key, make, of=f"{self._precision.value} at {aim:.3g}")
        except _Late as fault:
            return fault.found
        return from_json(entry.read(REPORT), Mixture, what="a mixture")

    @cached_property
    def _meter(self) -> Meter:
        scope = self._stages.options.scope
        return Meter(self._graph, self._precision, self._common.reference, ranges=self._ranges, scope=scope)

    def _parts(self, aim: float) -> tuple[Part, ...]:
        return sensitivities(self._meter, enough=aim, until=self._stop, progress=self._stages.progress)

    @cached_property
    def _lost(self) -> dict[str, float]:
        """What it costs to hold each node in the higher precision, by name: estimated, in ms at the usual batch."""
        fast, slow = (
            node_costs(self._graph, batch=self._common.usual_batch, tf32=True, kind=kind)
            for kind in KINDS[self._precision]
        )
        return {name: slow[name] - fast[name] for name in fast}

    def close(self) -> None:
        if "_meter" in self.__dict__:
            self._meter.close()


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
