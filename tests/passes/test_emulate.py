from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch

from graphs import ops, pictures, small_model, written
from trtship.graphs import load_graph
from trtship.passes import emulate_bfloat16, to_precision
from trtship.session.onnxruntime import OnnxRuntimeSession
from trtship.spec import Precision

WEIGHT = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
X = np.random.default_rng(1).standard_normal((3, 8)).astype(np.float32)


def rounded(array: np.ndarray) -> np.ndarray:
    return array.astype(ml_dtypes.bfloat16).astype(np.float32)


def emulated(folder: Path, body: str, *, io_dtype: str = "float32", **tensors: np.ndarray) -> Path:
    source = written(folder / "a.onnx", body, **tensors)
    to_precision(source, folder / "b.onnx", Precision.BF16, io_dtype=io_dtype)
    emulate_bfloat16(folder / "b.onnx", folder / "c.onnx")
    return folder / "c.onnx"


@pytest.mark.parametrize("optimize", [True, False])
def test_every_node_rounds_and_onnxruntime_does_not_remove_it(tmp_path: Path, optimize: bool) -> None:
    path = emulated(tmp_path, "(float[B, 8] x) => (float[B, 8] y) { a = Mul(x, w) y = Add(a, x) }", w=WEIGHT[0])
    with OnnxRuntimeSession(path, optimize=optimize) as session:
        found = session.infer({"x": X})["y"]
    x = rounded(X)
    expected = rounded(rounded(x * rounded(WEIGHT[0])) + x)
    assert np.array_equal(found, expected)
    assert not np.array_equal(found, X * WEIGHT[0] + X)


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


def test_a_real_model_is_off_by_what_bfloat16_costs(exported: Callable[[str], Path], tmp_path: Path) -> None:
    to_precision(exported("swin"), tmp_path / "b.onnx", Precision.BF16)
    emulate_bfloat16(tmp_path / "b.onnx", tmp_path / "c.onnx")
    x, model = pictures("swin", 4), small_model("swin")
    with torch.no_grad():
        exact = model(x)
        low = model.bfloat16()(x.bfloat16()).float()
    with OnnxRuntimeSession(tmp_path / "c.onnx") as session:
        found = session.infer({"input": x})["logits"]
    theirs, ours = (float((y - exact).norm() / exact.norm()) for y in (low, found))
    assert theirs / 4 < ours < theirs * 2


def test_a_float16_graph_runs_as_it_is(exported: Callable[[str], Path], tmp_path: Path) -> None:
    to_precision(exported("swin"), tmp_path / "b.onnx", Precision.FP16)
    x, model = pictures("swin", 4), small_model("swin")
    with torch.no_grad():
        exact = model(x)
        low = model.half()(x.half()).float()
    with OnnxRuntimeSession(tmp_path / "b.onnx") as session:
        found = session.infer({"input": x})["logits"]
    theirs, ours = (float((y - exact).norm() / exact.norm()) for y in (low, found))
    assert theirs / 4 < ours < theirs * 2
