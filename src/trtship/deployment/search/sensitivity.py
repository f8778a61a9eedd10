"""How much each part of a graph contributes to the error of its low precision, measured through onnxruntime.

A part is a run of neighbouring nodes; its sensitivity is the error of the outputs when it alone is low. Parts that
overflow, or matter most, are halved until they are single nodes, or time is up. Independent errors add up in squares,
which predicts the error of a mixture; `Meter.error` measures it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from trtship.files import temporary_folder
from trtship.measure import measure, worst
from trtship.passes.quantize_places import Scope
from trtship.passes.switches import SWITCHES, switchable
from trtship.progress import SILENT, Progress
from trtship.session.onnxruntime import OnnxRuntimeSession
from trtship.spec import Precision
from trtship.verify import Reference

PARTS = 24
"""Parts at first; each is one run of the network."""
LARGEST = 1
"""Of the other sizes of the reference, the first: the largest."""
Run = tuple[dict[str, Any], dict[str, Any]]
"""Inputs and what the original says of them."""
SLOW, FEWEST = 2.0, 3
"""Seconds of a run above which fewer rows of the reference are run, and how many there are at least."""


class Part(msgspec.Struct, frozen=True):
    """Neighbouring nodes, by name, and the relative L2 error of the outputs when they alone are low; infinite where an
    output is not finite then."""

    nodes: tuple[str, ...]
    error: float


class Meter:
    """Runs the switched graph on the reference's rows, and on those at the largest sizes, where sums and magnitudes
    are largest."""

    def __init__(
        self,
        graph: Path,
        precision: Precision,
        reference: Reference,
        *,
        ranges: Mapping[str, float] | None = None,
        scope: Scope = "fused",
    ) -> None:
        with temporary_folder() as folder:
            target = folder / "switched.onnx"
            self.nodes = switchable(graph, target, precision, ranges=ranges, scope=scope)
            # as it is written where it is quantized: fusions of onnxruntime 1.32 change what fp8's Q and DQ mean
            self._session = OnnxRuntimeSession(target, optimize=not precision.quantized)
        self._runs = [case.at(case.rows) for case in (reference, *reference.others[:LARGEST])]
        begun = time.monotonic()
        self.error(())
        seconds = time.monotonic() - begun
        if reference.batch is not None and seconds > SLOW:
            self._runs = [_fewer(run, max(FEWEST, int(_rows(run) * SLOW / seconds))) for run in self._runs]

    def error(self, low: Collection[str]) -> float:
        """The worst row's relative L2 with these nodes low; infinite where an output is not finite."""
        switches = np.array([name in low for name in self.nodes])
        measures = []
        for inputs, expected in self._runs:
            found = self._session.infer({**inputs, SWITCHES: switches})
            measures += [measure(array, found[name], output=name, sizes={}) for name, array in expected.items()]
        largest = worst(measures)
        return math.inf if largest is None else largest

    def close(self) -> None:
        self._session.close()


def _rows(run: Run) -> int:
    return len(next(iter(run[0].values())))


def _fewer(run: Run, count: int) -> Run:
    """At most `count` of the rows, spread evenly: pictures come first, then random rows."""
    some = np.linspace(0, _rows(run) - 1, min(count, _rows(run))).astype(int)
    inputs, expected = ({name: array[some] for name, array in arrays.items()} for arrays in run)
    return inputs, expected


def sensitivities(
    meter: Meter,
    *,
    enough: float,
    until: float = math.inf,
    clock: Callable[[], float] = time.monotonic,
    progress: Progress = SILENT,
) -> tuple[Part, ...]:
    """The nodes in parts, in the graph's order. Halved are, the most sensitive first, those that overflow, and those
    whose error alone is more than their share of `enough`; not after `until`, by `clock`."""
    size = max(1, math.ceil(len(meter.nodes) / PARTS))
    names = meter.nodes
    parts: list[Part] = []
    for begin in range(0, len(names), size):
        progress.step(0.5 * begin / len(names), f"nodes {begin} to {min(begin + size, len(names))} of {len(names)}")
        nodes = names[begin : begin + size]
        parts.append(Part(nodes, meter.error(nodes)))
    whole: set[tuple[str, ...]] = set()
    while clock() < until:
        share = enough / math.sqrt(len(parts))
        wide = [p for p in parts if len(p.nodes) > 1 and p.nodes not in whole and p.error > share]
        if not wide:
            break
        part = max(wide, key=lambda p: p.error)
        progress.step(0.75, f"the {len(part.nodes)} nodes from {part.nodes[0]}")
        middle = len(part.nodes) // 2
        halves = [Part(nodes, meter.error(nodes)) for nodes in (part.nodes[:middle], part.nodes[middle:])]
        if part.error == math.inf and all(half.error < math.inf for half in halves):
            whole.add(part.nodes)  # it overflows only as a whole
            continue
        index = parts.index(part)
        parts[index : index + 1] = halves
    return tuple(parts)
