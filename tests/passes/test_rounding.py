from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from graphs import SMALL, model_of, pictures, small_model
from trtship.errors import GraphError
from trtship.graphs import load_graph, rounding_bound
from trtship.graphs.rounding import DEVIATION, QUANTILE
from trtship.passes import emulate_low, to_precision
from trtship.session.onnxruntime import OnnxRuntimeSession
from trtship.spec import Precision


def bound_of(body: str, precision: Precision = Precision.FP32, **tensors: np.ndarray) -> object:
    return rounding_bound(ir.serde.deserialize_model(model_of(body, **tensors)), precision)


def roundings(body: str, precision: Precision = Precision.FP32, **tensors: np.ndarray) -> tuple[int, int]:
    bound = bound_of(body, precision, **tensors)
    return bound.roundings, bound.accumulations  # type: ignore[attr-defined]


W = np.ones((64, 8), np.float32)


def test_moving_values_rounds_nothing() -> None:
    assert roundings("(float[2, 64] x) => (float[64, 2] y) { a = Relu(x) y = Transpose(a) }") == (0, 0)


def test_each_arithmetic_operator_rounds_once() -> None:
    assert roundings("(float[4] x) => (float[4] y) { a = Add(x, x) b = Mul(a, x) y = Sub(b, x) }") == (3, 0)


def test_the_longest_path_counts_not_the_sum() -> None:
    body = "(float[4] x) => (float[4] y) { a = Add(x, x) b = Mul(a, a) c = Sub(x, x) y = Mul(b, c) }"
    assert roundings(body) == (3, 0)


def test_a_product_in_fp32_rounds_at_every_term() -> None:
    body = "(float[B, 64] x) => (float[B, 8] y) { y = MatMul(x, w) }"
    assert roundings(body, w=W) == (64 // 2 + 1, 0)


def test_a_product_in_fp16_accumulates_in_fp32() -> None:
    body = "(float16[B, 64] x) => (float16[B, 8] y) { y = MatMul(x, w) }"
    assert roundings(body, Precision.FP16, w=W.astype(np.float16)) == (2, 32)


def test_tf32_rounds_both_operands_of_products_alone() -> None:
    body = "(float[B, 64] x) => (float[B, 8] y) { a = MatMul(x, w) y = Add(a, a) }"
    assert roundings(body, Precision.TF32, w=W) == (2, 32 + 1 + 1)


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.BF16])
def test_a_product_kept_in_fp32_beside_lower_ones_may_round_its_operands_to_tf32(precision: Precision) -> None:
    """The builder's flag holds for the whole plan."""
    low = {Precision.FP16: "float16", Precision.BF16: "bfloat16"}[precision]
    body = f"({low}[B, 64] x) => (float[B, 8] y) {{ r = Neg(x) a = Cast<to = 1>(r) y = MatMul(a, w) }}"
    found: Any = bound_of(body, precision, w=W)
    variance = (found.bound / (QUANTILE * DEVIATION)) ** 2
    assert variance == pytest.approx(2 * 2.0**-22 + (64 // 2 + 1) * 2.0**-48, rel=1e-6)
    assert "2 at 2^-11 (TF32)" in found.derivation


def test_the_bound_is_lambda_times_the_root_of_the_sum_of_squares() -> None:
    bound = bound_of("(float[4] x) => (float[4] y) { a = Add(x, x) y = Add(a, a) }")
    assert bound.bound == pytest.approx(bound.lambda_ * math.sqrt(2) * 2**-24)  # type: ignore[attr-defined]
    assert "Higham and Mary" in bound.derivation  # type: ignore[attr-defined]


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.BF16])
def test_a_graph_in_another_type_is_refused(precision: Precision) -> None:
    with pytest.raises(GraphError, match=f"not in {precision.value}"):
        bound_of("(float[4] x) => (float[4] y) { y = Add(x, x) }", precision)


def test_lambda_is_the_quantile_times_the_deviation_seen() -> None:
    rng = np.random.default_rng(0)
    significands = np.exp2(rng.uniform(0, 1, 200_000))
    errors = (significands.astype(np.float16).astype(np.float64) - significands) / significands
    assert float(errors.std()) / 2**-11 == pytest.approx(DEVIATION, rel=0.02)
    assert math.erfc(QUANTILE / math.sqrt(2)) == pytest.approx(1e-6, rel=1e-4)


def relative(reference: torch.Tensor, other: torch.Tensor) -> float:
    return float((other.double() - reference.double()).norm() / reference.double().norm())


def prepared(graph: Path, folder: Path, precision: Precision) -> tuple[Path, float]:
    """A file that onnxruntime can run in the precision, and the bound."""
    typed = folder / "typed.onnx"
    to_precision(graph, typed, precision)
    bound = rounding_bound(load_graph(typed), precision).bound
    if precision.graph_dtype != "float32":
        emulate_low(typed, folder / "emulated.onnx")
        typed = folder / "emulated.onnx"
    return typed, bound


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16, Precision.BF16])
@pytest.mark.parametrize("name", SMALL)
def test_real_models_are_within_the_bound_but_not_by_far(
    name: str, precision: Precision, exported: Callable[[str], Path], tmp_path: Path
) -> None:
    x = pictures(name, 3)
    with torch.no_grad():
        reference = small_model(name).double()(x.double())
    path, bound = prepared(exported(name), tmp_path, precision)
    with OnnxRuntimeSession(path, threads=1) as session:
        error = relative(reference, session.infer({"input": x})["logits"])
    assert bound / 100 < error < bound


def swap_biases(model: torch.nn.Module) -> None:
    """Of one attention's queries and keys."""
    bias = model.layers[0].blocks[1].attn.qkv.bias  # type: ignore[union-attr,index]
    third = len(bias) // 3
    bias[:third], bias[third : 2 * third] = bias[third : 2 * third].clone(), bias[:third].clone()


def drop_mask(model: torch.nn.Module) -> None:
    model.layers[0].blocks[1].attn_mask.zero_()  # type: ignore[union-attr,index]


def drop_bias(model: torch.nn.Module) -> None:
    model.layers[0].blocks[0].mlp.fc1.bias.zero_()  # type: ignore[union-attr,index]


def swap_heads(model: torch.nn.Module) -> None:
    table = model.layers[0].blocks[0].attn.relative_position_bias_table  # type: ignore[union-attr,index]
    table.copy_(table.flip(1))


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16])
@pytest.mark.parametrize("plant", [swap_biases, drop_mask, drop_bias, swap_heads])
def test_a_planted_bug_is_outside_the_bound(
    plant: Callable[[torch.nn.Module], None],
    precision: Precision,
    exported: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    x = pictures("swin", 3)
    model = small_model("swin")
    with torch.no_grad():
        plant(model)
        reference = model(x)
    path, bound = prepared(exported("swin"), tmp_path, precision)
    with OnnxRuntimeSession(path, threads=1) as session:
        error = relative(reference, session.infer({"input": x})["logits"])
    assert error > bound


def test_a_products_size_is_taken_from_either_operand() -> None:
    body = "(float[B, C] x) => (float[B, 8] y) { y = MatMul(x, w) }"
    assert roundings(body, w=W) == (64 // 2 + 1, 0)


def test_a_size_that_is_not_known_counts_generously() -> None:
    assert roundings("(float[B, C] x) => (float[B, B] y) { t = Transpose(x) y = MatMul(x, t) }") == (1024 // 2 + 1, 0)


def test_unknown_sizes_of_a_reduction_count_once() -> None:
    body = """(float[B, H, W, 4] x) => (float[B, 4] y) {
        axes = Constant<value_ints = [1, 2]>()
        y = ReduceSum<keepdims = 0>(x, axes)
    }"""
    assert roundings(body) == (1024 // 2 + 1, 0)
    assert roundings(body.replace("H, W", "6, 5")) == (30 // 2 + 1, 0)


def test_a_convolution_sums_over_its_window_and_channels() -> None:
    body = "(float[B, 4, 8, 8] x) => (float[B, 2, 6, 6] y) { y = Conv(x, w) }"
    assert roundings(body, w=np.ones((2, 4, 3, 3), np.float32)) == (36 // 2 + 1, 0)
