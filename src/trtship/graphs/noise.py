"""How far rounding moves a graph's outputs: measured, by running it with errors of rounding's size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trtship.files import temporary_folder
from trtship.graphs.noisy import DRAW, Sizes, add_noise, noise_sizes
from trtship.graphs.rounding import QUANTILE, rounding_bound
from trtship.graphs.storage import load_graph, save_graph
from trtship.measure import HUGE
from trtship.session.onnxruntime import OnnxRuntimeSession
from trtship.spec import Precision

if TYPE_CHECKING:
    import onnx_ir

DRAWS, MANY_DRAWS = 3, 12
"""Runs with other errors. Of a row of `ENOUGH` numbers or more three tell the variance: each number has its own errors.
Of a row of few they do not."""
ENOUGH = 16
AMPLIFIED = 64.0
"""fp32's own errors are too small to be told from those of the run that measures them; so small, they add linearly."""


@contextmanager
def open_noisy(model: onnx_ir.Model, sizes: Mapping[onnx_ir.Node, Sizes]) -> Iterator[OnnxRuntimeSession]:
    """`model`, whose tensors are all float32, running with noise (`trtship.graphs.noisy`). Edits it."""
    add_noise(model, sizes)
    with temporary_folder() as folder:
        path = folder / "noisy.onnx"
        save_graph(model, path)
        with OnnxRuntimeSession(path) as session:
            yield session


def spread(
    session: OnnxRuntimeSession, feeds: Mapping[str, Any], *, whole: bool = False, draws: int = DRAWS
) -> list[float]:
    """Return how far noisy runs on the same `feeds` are apart: the deviation of each row's relative L2 error, of the
    worst floating output. `whole` takes all rows for one. NaN for a row of NaN or Inf. There are `draws` runs, and
    `MANY_DRAWS` where a row has few numbers."""
    scales = iter(np.random.default_rng(0).uniform(1, 2, MANY_DRAWS).astype(np.float32))
    runs = [session.infer({**feeds, DRAW: np.array(s)}) for s in islice(scales, draws)]
    fewest = min((_numbers(array, whole=whole) for array in runs[0].values()), default=ENOUGH)
    runs += [session.infer({**feeds, DRAW: np.array(s)}) for s in scales] if fewest < ENOUGH else []
    stacked = [np.stack([run[spec.name] for run in runs]) for spec in session.outputs]
    each = [_relative(one, whole=whole) for one in stacked if one.dtype.kind == "f"]
    return [float(v) for v in np.max(each, axis=0)] if each else [0.0]


def _numbers(output: Any, *, whole: bool) -> int:
    """How many an output has for a row."""
    return int(np.size(output)) if whole else int(np.size(output)) // max(1, len(output))


def _relative(runs: Any, *, whole: bool) -> Any:
    """[runs, rows, ...] -> [rows]."""
    flat = runs.astype(np.float64).reshape(len(runs), 1 if whole else runs.shape[1], -1)
    mean = flat.mean(0)
    size = np.linalg.norm(mean, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        deviation = np.sqrt(np.square(flat - mean).sum((0, 2)) / (len(runs) - 1))
        return np.where(deviation == 0, 0.0, np.minimum(deviation / size, HUGE))


def fp32_gain(graph: Path, feeds: Mapping[str, Any]) -> float:
    """What the fp32 `graph` makes of its roundings on `feeds`: the noise of the worst row over that of the longest
    path, which the bound of `trtship.graphs.rounding` takes for 1. Raises GraphError."""
    model = load_graph(graph)
    path = rounding_bound(model, Precision.FP32).bound / QUANTILE
    sizes = noise_sizes(model, Precision.FP32, amplified=AMPLIFIED)
    with open_noisy(model, sizes) as session:
        noise = np.nanmax(spread(session, feeds)) / AMPLIFIED
    return float(noise / path) if path else 0.0
