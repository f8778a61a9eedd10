"""Does a rewritten graph still compute the same? Asked of the graph at hand, on ordinary and on nasty inputs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trtship.errors import GraphError
from trtship.graphs import load_graph, precision_of, rounding_bound
from trtship.graphs.noise import fp32_noise
from trtship.measure import Measure, measure, random_inputs, worst
from trtship.passes.compare import LARGE, default_sizes
from trtship.session.base import Array
from trtship.session.onnxruntime import OnnxRuntimeSession
from trtship.spec import Precision, Record, TensorSpec

if TYPE_CHECKING:
    pass

HOT = 100.0
"""A hot pixel, where a normalised picture stays within about 3."""
KINDS = 3
"""Large activations, constant rows, one hot pixel."""


class Verdict(Record, frozen=True):
    """`error` is the largest relative L2 over all outputs, rows and inputs, None where nothing could be compared or an
    output was not finite; `bound` what rounding explains; `why` says in words why it is the same or not."""

    same: bool
    error: float | None
    bound: float
    why: str


class Reference:
    """A graph's own outputs on the proof's inputs, computed once, and held against every graph that comes after it.

    Random inputs at `sizes` (default: batch 1, 2 and 3, every other dynamic size likewise), and adversarial ones at the
    last of them, a row of each kind; those are left out where the graph itself overflows on them.
    """

    def __init__(self, graph: Path, *, sizes: Sequence[Mapping[str, int]] | None = None, seed: int = 0) -> None:
        model = load_graph(graph)
        self._graph, self._precision = graph, precision_of(model)
        self._small: dict[int, dict[str, float]] = {}
        self._bound = rounding_bound(model, self._precision).bound
        self._cases: list[tuple[dict[str, int], dict[str, Array], dict[str, Array]]] = []
        with OnnxRuntimeSession(graph, optimize=False) as session:
            wanted = default_sizes(session.inputs) if sizes is None else sizes
            for index, (at, feeds) in enumerate(make_cases(session.inputs, wanted, seed=seed)):
                expected = session.infer(feeds)
                if index < len(wanted) or all(np.isfinite(array).all() for array in expected.values()):
                    self._cases.append((at, feeds, expected))

    def verdict(self, graph: Path) -> Verdict:
        """Compare `graph` with the reference, within the rounding of both: sqrt(a^2 + b^2), two independent errors."""
        model = load_graph(graph)
        bound = math.hypot(self._bound, rounding_bound(model, precision_of(model)).bound)
        measures: list[Measure] = []
        try:
            with OnnxRuntimeSession(graph, optimize=False) as session:
                for index, (sizes, feeds, expected) in enumerate(self._cases):
                    found = session.infer(feeds)
                    these = [measure(r, found[n], output=n, sizes=sizes) for n, r in expected.items()]
                    off = worst(these)
                    if off is not None and off > bound and (floors := self._floors(index)):
                        these = [
                            measure(r, found[n], output=n, sizes=sizes, floor=floors.get(n, 0.0))
                            for n, r in expected.items()
                        ]
                    measures += these
        except GraphError as fault:
            return Verdict(same=False, error=None, bound=bound, why=f"it does not run: {fault.why or fault.what}")
        error = worst(measures)
        if error is None:
            return Verdict(same=False, error=None, bound=bound, why="an output has NaN or Inf")
        why = f"relative L2 at most {error:.2g}, bound {bound:.2g}"
        return Verdict(same=error <= bound, error=error, bound=bound, why=why)

    def _floors(self, index: int) -> dict[str, float]:
        """Of a case's outputs that are next to nothing (`trtship.graphs.small_rows`); measured where it is asked for,
        and of fp32 graphs alone."""
        if self._precision is not Precision.FP32:
            return {}
        if index not in self._small:
            _, feeds, expected = self._cases[index]
            try:
                self._small[index] = fp32_noise(self._graph, feeds, expected).floors(self._bound)
            except GraphError:  # of the graph with noise: nothing is known, and nothing allowed for
                self._small[index] = {}
        return self._small[index]


def make_cases(
    inputs: Sequence[TensorSpec], sizes: Sequence[Mapping[str, int]], *, seed: int
) -> list[tuple[dict[str, int], dict[str, Array]]]:
    """Sizes and inputs: random ones at every size, then adversarial ones until each kind has had a row."""
    cases = [(dict(size), random_inputs(inputs, size, seed=seed)) for size in sizes]
    last = dict(sizes[-1])
    rows = max([spec.with_sizes(last)[0] for spec in inputs if spec.shape], default=1)
    for first in range(0, KINDS, max(rows, 1)):
        feeds = random_inputs(inputs, last, seed=seed + 1)
        for array in feeds.values():
            if array.dtype.kind == "f" and array.ndim:
                for row in range(len(array)):
                    _spoil(array[row : row + 1], (first + row) % KINDS)
        cases.append((last, feeds))
    return cases


def _spoil(row: Array, kind: int) -> None:
    """In place: 0, large activations; 1, every line along the last axis one value; 2, nothing but one hot pixel."""
    if kind == 0:
        row *= LARGE
    elif kind == 1:
        row[...] = row[..., :1].copy()
    else:
        row[...] = 0
        row[..., row.shape[-1] // 2].flat[0] = HOT
