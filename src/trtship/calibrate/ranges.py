"""The ranges of named tensors, by onnxruntime's calibrators.

`min-max` is the whole range that was seen. `percentile` leaves 0.001 % of the magnitudes out (onnxruntime's default).
`entropy` takes the threshold whose 128 levels lose least information about the histogram (Migacz, "8-bit Inference
with TensorRT", GTC 2017). onnxruntime's default number of bins, 128, leaves that method a single candidate, which is
the whole range; here they are `BINS`.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from trtship.calibrate.feeds import Feeds
from trtship.calibrate.records import DEFAULT_METHOD, Calibration, Method, TensorRange
from trtship.calibrate.sizes import root_mean_squares
from trtship.errors import GraphError, SpecError
from trtship.files import temporary_folder
from trtship.graphs.storage import EXTERNAL_OVER, graph_files
from trtship.needs import need
from trtship.progress import SILENT, Progress

BINS, LEVELS = 512, 128
"""Of the entropy method's first histogram, over both signs, and of the quantized one."""
MOST_BINS = 2048
"""Later batches that reach further add bins of the first one's width, and the search takes time as their square."""
PERCENTILE = 99.999


def calibrate(
    graph: Path, tensors: Collection[str], feeds: Feeds, *, method: Method = DEFAULT_METHOD, progress: Progress = SILENT
) -> Calibration:
    """Run `feeds` through the fp32 ONNX file `graph` on the CPU, batch by batch, and tell the range of each tensor.

    Raises GraphError when the graph cannot be run, or a tensor was not finite; SpecError for a tensor that it has not;
    what `feeds` raises for data that cannot be read.
    """
    if not tensors:
        return Calibration(method=method, pictures=0, source=feeds.source, tensors={})
    need("onnxruntime", purpose="calibration")
    if not feeds.rows:
        raise SpecError(f"{feeds.source} has nothing to calibrate with", why="it is empty", do="add pictures")
    with temporary_folder() as folder, contextlib.redirect_stdout(io.StringIO()):
        calibrator = _calibrator(graph, frozenset(tensors), method, folder)
        for index, batch in enumerate(feeds):
            progress.step(index * feeds.batch / feeds.rows, f"{index * feeds.batch} of {feeds.rows} pictures")
            _collect(calibrator, batch, graph)
        progress.step(1.0, f"the ranges, by {method}")
        if method == "entropy":
            histograms = calibrator.collector.histogram_dict
            histograms.update({name: _coarsened(histogram) for name, histogram in histograms.items()})
        found = calibrator.compute_data().data
    sizes = root_mean_squares(graph, sorted(tensors), feeds)
    ranges = {name: _range_of(name, found[name], sizes[name]) for name in sorted(tensors)}
    return Calibration(method=method, pictures=feeds.rows, source=feeds.source, tensors=ranges)


def _collect(calibrator: Any, batch: Mapping[str, Any], graph: Path) -> None:
    try:
        calibrator.collect_data(_Reader(batch))
    except Exception as error:
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in batch.items())
        raise GraphError(
            f"{graph.name} failed while it was calibrated on {shapes}",
            why=str(error).splitlines()[0][:500],
            do="check whether the model takes these sizes",
        ) from error


class _Reader:
    """One batch, in the form that calibrators read: they keep all that one reader gives them in memory."""

    def __init__(self, batch: Mapping[str, Any]) -> None:
        self._left: Iterator[Mapping[str, Any]] = iter([batch])

    def get_next(self) -> Mapping[str, Any] | None:
        return next(self._left, None)


def _calibrator(graph: Path, tensors: frozenset[str], method: Method, folder: Path) -> Any:
    quantization = need("onnxruntime.quantization.calibrate", purpose="calibration")
    choices: dict[Method, tuple[Any, dict[str, Any]]] = {
        "min-max": (quantization.MinMaxCalibrater, {"symmetric": False}),
        "entropy": (quantization.EntropyCalibrater, {"num_bins": BINS, "num_quantized_bins": LEVELS}),
        "percentile": (quantization.PercentileCalibrater, {"symmetric": True, "percentile": PERCENTILE}),
    }
    kind, options = choices[method]

    class OfTheseTensors(kind):  # type: ignore[valid-type, misc]  # onnxruntime is untyped; it selects by operator
        def select_tensors_to_calibrate(self, model: Any) -> tuple[set[str], dict[str, Any]]:
            _, infos = super().select_tensors_to_calibrate(model)
            for name in sorted(tensors - infos.keys()):
                raise SpecError(f"the graph has no tensor {name!r}", why="there is none of that name", do="check it")
            return set(tensors), infos

    is_large = sum(path.stat().st_size for path in graph_files(graph)) > EXTERNAL_OVER
    calibrator = OfTheseTensors(
        graph,
        augmented_model_path=str(folder / "augmented.onnx"),
        use_external_data_format=is_large,
        **options,
    )
    try:
        calibrator.augment_graph()
        calibrator.create_inference_session()
    except SpecError:
        raise
    except Exception as error:
        why = str(error).splitlines()[0][:500]
        raise GraphError(f"onnxruntime cannot calibrate {graph.name}", why=why, do="export the model again") from error
    return calibrator


def _coarsened(histogram: tuple[Any, ...]) -> tuple[Any, ...]:
    """onnxruntime's (counts, edges, lowest, highest, threshold), as many bins put together as leave `MOST_BINS`; the
    edges stay symmetric about 0."""
    import numpy as np

    counts, edges, lowest, highest, threshold = histogram
    factor = -(-len(counts) // MOST_BINS)
    if factor == 1:
        return histogram
    margin = next(m for m in range(factor) if (len(counts) + 2 * m) % factor == 0)
    merged = np.pad(counts, margin).reshape(-1, factor).sum(1)
    reach = threshold * (1 + 2 * margin / len(counts))
    return merged, np.linspace(-reach, reach, len(merged) + 1).astype(edges.dtype), lowest, highest, reach


def _range_of(name: str, found: Any, rms: float) -> TensorRange:
    import numpy as np

    low, high = (float(np.asarray(one).reshape(-1)[0]) for one in found.range_value)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise GraphError(
            f"the tensor {name} is not finite on these pictures",
            why=f"its range is {low} to {high}",
            do="check the preprocessing, and the model in fp32",
        )
    return TensorRange(low=low, high=high, rms=rms)
