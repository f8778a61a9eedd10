from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch

from graphs import ops, pictures, small_model, written
from trtship.graphs import load_graph
from trtship.passes import emulate_low, to_precision
from trtship.session.onnxruntime import OnnxRuntimeSession
from trtship.spec import Precision

WEIGHT = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
X = np.random.default_rng(1).standard_normal((3, 8)).astype(np.float32)


both = pytest.mark.parametrize("precision", [Precision.FP16, Precision.BF16])


def rounded(array: np.ndarray, precision: Precision = Precision.BF16) -> np.ndarray:
    return array.astype(np.float16 if precision is Precision.FP16 else ml_dtypes.bfloat16).astype(np.float32)


def emulated(
    folder: Path, body: str, precision: Precision = Precision.BF16, *, io_dtype: str = "float32", **tensors: np.ndarray
) -> Path:
    source = written(folder / "a.onnx", body, **tensors)
    to_precision(source, folder / "b.onnx", precision, io_dtype=io_dtype)
    emulate_low(folder / "b.onnx", folder / "c.onnx")
    return folder / "c.onnx"


@both
@pytest.mark.parametrize("optimize", [True, False])
def test_every_node_rounds_and_onnxruntime_does_not_remove_it(
    tmp_path: Path, precision: Precision, optimize: bool
) -> None:
    body = "(float[B, 8] x) => (float[B, 8] y) { a = Mul(x, w) y = Add(a, x) }"
    path = emulated(tmp_path, body, precision, w=WEIGHT[0])
    with OnnxRuntimeSession(path, optimize=optimize) as session:
        found = session.infer({"x": X})["y"]
    x = rounded(X, precision)
    expected = rounded(rounded(x * rounded(WEIGHT[0], precision), precision) + x, precision)
    assert np.array_equal(found, expected)
    assert not np.array_equal(found, X * WEIGHT[0] + X)


def test_what_overflows_in_float16_does_so_even_where_the_result_would_fit(tmp_path: Path) -> None:
    body = "(float[B, 8] x) => (float[B, 8] y) { a = Mul(x, k) b = Mul(a, k) y = Mul(b, s) }"
    numbers = {"k": np.float32(1000), "s": np.float32(0.001)}
    with OnnxRuntimeSession(emulated(tmp_path, body, Precision.FP16, **numbers)) as session:
        assert np.isinf(session.infer({"x": np.full((1, 8), 0.7, np.float32)})["y"]).all()
    with OnnxRuntimeSession(emulated(tmp_path, body, Precision.BF16, **numbers)) as session:
        assert np.allclose(session.infer({"x": np.full((1, 8), 0.7, np.float32)})["y"], 700, rtol=2**-6)


def test_fp32_nodes_are_not_rounded(tmp_path: Path) -> None:
    path = emulated(tmp_path, "(float[B, 8] x) => (float[B, 8] y, float[B, 8] p) { y = Neg(x) p = Softmax(y) }")
    with OnnxRuntimeSession(path) as session:
        found = session.infer({"x": X})
    exact = np.exp(-rounded(X).astype(np.float64))
    assert np.allclose(found["p"], exact / exact.sum(1, keepdims=True), rtol=1e-6)


def test_moves_are_not_rounded_twice(tmp_path: Path) -> None:
    path = emulated(tmp_path, "(float[3, 8] x) => (float[8, 3] y) { y = Transpose(x) }")
    assert ops(path) == ["Cast", "Cast", "Cast", "Transpose", "Cast"]
    with OnnxRuntimeSession(path) as session:
        assert np.array_equal(session.infer({"x": X})["y"], rounded(X).T)


def test_nothing_bfloat16_is_left_but_the_rounding(tmp_path: Path) -> None:
    body = "(float[B, 8] x) => (float[B, 8] y) { y = MatMul(x, w) }"
    path = emulated(tmp_path, body, io_dtype="bfloat16", w=WEIGHT)
    model = load_graph(path)
    assert [str(v.dtype) for v in (*model.graph.inputs, *model.graph.outputs)] == ["FLOAT", "FLOAT"]
    assert {str(v.dtype) for v in model.graph.initializers.values()} == {"FLOAT"}
    assert [value.name for value in model.graph.outputs] == ["y"]


@both
def test_a_real_model_is_off_by_what_the_precision_costs(
    exported: Callable[[str], Path], precision: Precision, tmp_path: Path
) -> None:
    to_precision(exported("swin"), tmp_path / "b.onnx", precision)
    emulate_low(tmp_path / "b.onnx", tmp_path / "c.onnx")
    x, model = pictures("swin", 4), small_model("swin")
    kind = getattr(torch, precision.graph_dtype)
    with torch.no_grad():
        exact = model(x)
        low = model.to(kind)(x.to(kind)).float()
    with OnnxRuntimeSession(tmp_path / "c.onnx") as session:
        found = session.infer({"input": x})["logits"]
    theirs, ours = (float((y - exact).norm() / exact.norm()) for y in (low, found))
    assert theirs / 4 < ours < theirs * 2
