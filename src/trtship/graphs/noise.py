"""How far rounding moves a graph's outputs: measured, by running it with errors of rounding's size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from trtship.files import temporary_folder
from trtship.graphs.noisy import DRAW, Sizes, add_noise, noise_sizes
from trtship.graphs.rounding import QUANTILE, rounding_bound
from trtship.graphs.small_rows import RowNoise, as_rows, floors, judge_all, row_sizes, worst_of
from trtship.graphs.storage import load_graph, save_graph
from trtship.session.onnxruntime import OnnxRuntimeSession
from trtship.spec import Precision

if TYPE_CHECKING:
    import onnx_ir

DRAWS, MANY_DRAWS = 3, 12
"""Runs with other errors. Of a row of `ENOUGH` numbers or more three tell the variance: each number has its own errors.
Of a row of few they do not; equal numbers, as of a flat picture, have equal errors and count as one."""
ENOUGH = 16
AMPLIFIED = 64.0
"""fp32's own errors are too small to be told from those of the run that measures them; so small, they add linearly."""


@contextmanager
def open_noisy(
    model: onnx_ir.Model, sizes: Mapping[onnx_ir.Node, Sizes], *, untied: bool = False
) -> Iterator[OnnxRuntimeSession]:
    """Open `model`, whose tensors are all float32, running with noise (`trtship.graphs.noisy`). Edits it."""
    add_noise(model, sizes, untied=untied)
    with temporary_folder() as folder:
        path = folder / "noisy.onnx"
        save_graph(model, path)
        with OnnxRuntimeSession(path) as session:
            yield session


def spread(
    session: OnnxRuntimeSession, feeds: Mapping[str, Any], *, whole: bool = False, draws: int = DRAWS
) -> list[RowNoise]:
    """Return how far noisy runs on the same `feeds` are apart, for each row. `whole` takes all rows for one. There are
    `draws` runs, and `MANY_DRAWS` where a row has few numbers."""
    scales = iter(np.random.default_rng(0).uniform(1, 2, MANY_DRAWS).astype(np.float32))
    runs = [session.infer({**feeds, DRAW: np.array(s)}) for s in islice(scales, draws)]
    fewest = min((_numbers(array, whole=whole) for array in runs[0].values()), default=ENOUGH)
    runs += [session.infer({**feeds, DRAW: np.array(s)}) for s in scales] if fewest < ENOUGH else []
    found = {
        spec.name: _by_row(np.stack([as_rows(run[spec.name], whole=whole) for run in runs]))
        for spec in session.outputs
        if runs[0][spec.name].dtype.kind == "f"
    }
    count = max((len(deviations) for deviations, _ in found.values()), default=1)
    return [
        RowNoise(
            {name: float(deviations[row]) for name, (deviations, _) in found.items() if row < len(deviations)},
            {name: float(sizes[row]) for name, (_, sizes) in found.items() if row < len(sizes)},
        )
        for row in range(count)
    ]


def _numbers(output: Any, *, whole: bool) -> int:
    """How many different numbers an output has, in the row that has the fewest."""
    rows = as_rows(output, whole=whole)
    with np.errstate(invalid="ignore", divide="ignore"):
        scaled = np.round(rows / np.abs(rows).max(axis=1, keepdims=True, initial=0.0), 5)
    return min((np.unique(row).size for row in scaled), default=ENOUGH)


def _by_row(runs: Any) -> tuple[Any, Any]:
    """[runs, rows, elements] -> deviations and sizes, [rows] each."""
    count = max(1, runs.shape[2])
    with np.errstate(invalid="ignore"):
        mean = runs.mean(0)
        deviations = np.sqrt(np.square(runs - mean).sum((0, 2)) / (len(runs) - 1) / count)
        return deviations, np.sqrt(np.square(mean).sum(1) / count)


class Fp32Noise(msgspec.Struct, frozen=True):
    """What an fp32 graph makes of its roundings on some feeds.

    `gain` is the noise of the worst row over that of the longest path, which the bound of `trtship.graphs.rounding`
    takes for 1. `deviations` are those of an element of the outputs that are next to nothing on some row, by output
    (`trtship.graphs.small_rows`).
    """

    gain: float
    deviations: dict[str, float]

    def floors(self, own: float) -> dict[str, float]:
        """Return the `floor` of `trtship.measure.measure`, by output, with which a bound allows for the noise of small
        rows. `own` is the part of that bound that the rounding of one side has."""
        return floors(self.deviations, own)


def fp32_noise(graph: Path, feeds: Mapping[str, Any], outputs: Mapping[str, Any]) -> Fp32Noise:
    """Measure the noise of the fp32 `graph` on `feeds`, of which the original says `outputs`. Raises GraphError."""
    model = load_graph(graph)
    path = rounding_bound(model, Precision.FP32).bound / QUANTILE
    sizes = noise_sizes(model, Precision.FP32, amplified=AMPLIFIED)
    with open_noisy(model, sizes, untied=True) as session:
        rows = [row.scaled(1 / AMPLIFIED) for row in spread(session, feeds)]
    usual = (row_sizes(outputs, whole=True) or [{}])[0]
    judged = judge_all(rows, row_sizes(outputs), usual)
    noise = max((one.relative for one in judged if np.isfinite(one.relative)), default=0.0)
    return Fp32Noise(noise / path if path else 0.0, worst_of(one.small for one in judged))
