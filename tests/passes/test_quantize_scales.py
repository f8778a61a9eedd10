"""Scales and stored weights: properties, and onnxruntime's own arithmetic as a witness."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from trtship.errors import SpecError
from trtship.passes.quantize_scales import (
    LARGEST,
    quantized_weight,
    relative_error,
    scale_of,
    split_scales,
    weight_scales,
)
from trtship.spec import Precision

BOTH = st.sampled_from([Precision.INT8, Precision.FP8])
MAGNITUDES = st.floats(0, 1e4, width=32)
WEIGHTS = hnp.arrays(
    np.float32, st.tuples(st.integers(1, 5), st.integers(1, 5)), elements=st.floats(-100, 100, width=32)
)
AXES = st.sampled_from([None, 0, 1])


@given(MAGNITUDES, BOTH)
def test_a_scale_is_positive_finite_a_number_of_fp16_and_large_enough(amax: float, precision: Precision) -> None:
    scale = scale_of(amax, precision)
    assert 0 < scale < math.inf
    assert float(np.float16(scale)) == scale
    assert scale * LARGEST[precision] >= amax
    assert scale * LARGEST[precision] <= max(amax * (1 + 2.0**-10), 2.0**-14 * LARGEST[precision])


@pytest.mark.parametrize("amax", [-1.0, math.nan, math.inf, 1e8])
@pytest.mark.parametrize("precision", [Precision.INT8, Precision.FP8])
def test_a_range_that_has_no_scale_is_refused(amax: float, precision: Precision) -> None:
    with pytest.raises(SpecError, match="cannot be quantized"):
        scale_of(amax, precision)


@given(WEIGHTS, AXES)
def test_int8_is_off_by_half_a_step_at_most(weight: Any, axis: int | None) -> None:
    scales = weight_scales(weight, axis, Precision.INT8)
    stored = quantized_weight(weight, scales, axis, Precision.INT8)
    steps = np.broadcast_to(scales if axis is None else np.expand_dims(scales, 1 - axis), weight.shape)
    off = np.abs(stored * steps.astype(np.float64) - weight)
    assert stored.dtype == np.int8
    assert np.abs(stored.astype(int)).max() <= 127
    assert (off <= steps / 2 * (1 + 1e-6)).all()


@given(WEIGHTS, AXES)
def test_fp8_is_off_by_half_a_unit_in_its_last_place_at_most(weight: Any, axis: int | None) -> None:
    scales = weight_scales(weight, axis, Precision.FP8)
    stored = quantized_weight(weight, scales, axis, Precision.FP8).astype(np.float64)
    steps = np.broadcast_to(scales if axis is None else np.expand_dims(scales, 1 - axis), weight.shape)
    off = np.abs(stored * steps - weight)
    assert np.isfinite(stored).all()
    assert (off <= np.maximum(np.abs(weight) * 2.0**-4, steps * 2.0**-10) * (1 + 1e-6)).all()


@given(WEIGHTS, AXES, BOTH)
def test_the_relative_error_is_that_of_what_is_stored(weight: Any, axis: int | None, precision: Precision) -> None:
    scales = weight_scales(weight, axis, precision)
    stored = quantized_weight(weight, scales, axis, precision)
    steps = scales.astype(np.float64) if axis is None else np.expand_dims(scales.astype(np.float64), 1 - axis)
    size = np.linalg.norm(weight.astype(np.float64))
    wanted = np.linalg.norm(weight - stored.astype(np.float64) * steps) / size if size else 0.0
    assert relative_error(weight, stored, scales, axis) == pytest.approx(wanted, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.FP8])
@settings(max_examples=20)
@given(weight=WEIGHTS)
def test_weights_are_stored_as_quantizelinear_would_make_them(precision: Precision, weight: Any) -> None:
    scales = weight_scales(weight, 1, precision)
    kind = onnx.TensorProto.INT8 if precision is Precision.INT8 else onnx.TensorProto.FLOAT8E4M3FN
    zero = onnx.helper.make_tensor("z", kind, [len(scales)], np.zeros(len(scales)))
    nodes = [
        onnx.helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], axis=1),
        onnx.helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], axis=1),
    ]
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [value("x", 1, ["R", "C"])],
        [value("y", 1, ["R", "C"])],
        [zero, onnx.numpy_helper.from_array(scales, "s")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    expected = onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, {"x": weight})[0]
    stored = quantized_weight(weight, scales, 1, precision)
    assert np.array_equal(stored.astype(np.float32) * scales, expected)


def test_weights_of_zeros_have_a_scale_and_no_error(tmp_path: Path) -> None:
    weight = np.zeros((3, 2), np.float32)
    scales = weight_scales(weight, 0, Precision.INT8)
    assert (scales > 0).all()
    assert relative_error(weight, quantized_weight(weight, scales, 0, Precision.INT8), scales, 0) == 0


@given(WEIGHTS, st.sampled_from([0, 1]), BOTH)
def test_scales_of_channels_are_shares_of_the_largest(weight: Any, axis: int, precision: Precision) -> None:
    scales = weight_scales(weight, axis, precision)
    whole, shares = split_scales(scales)
    assert whole == scales.max()
    assert np.array_equal(shares, shares.astype(np.float16).astype(np.float32))
    assert (shares <= 1).all()
    steps = whole.astype(np.float64) * shares
    assert (steps >= scales).all()
    assert (steps <= np.maximum(scales * (1 + 2.0**-10), whole * 2.0**-10)).all()
