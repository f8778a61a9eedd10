"""Nodes that are kept in fp32 by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphs import model_of, written
from trtship.errors import SpecError
from trtship.graphs import load_graph
from trtship.passes import emulate_low, to_precision
from trtship.session.onnxruntime import OnnxRuntimeSession
from trtship.spec import Precision

W = np.linspace(-1, 1, 16, dtype=np.float32).reshape(4, 4)
BODY = (
    "(float[B, 4] x) => (float[B, 4] y) { a = MatMul(x, w) b = Tanh(a) c = MatMul(b, w) d = Sigmoid(c) "
    "e = MatMul(d, w) y = Tanh(e) }"
)
NODES = (*"abcde", "y")


def types_of(path: Path) -> dict[str, str]:
    """The type of what each node makes, by its output's name; casts apart."""
    from onnx_ir.passes.common import ShapeInferencePass

    model = load_graph(path)
    ShapeInferencePass()(model)
    return {str(n.outputs[0].name): str(n.outputs[0].dtype) for n in model.graph if n.op_type != "Cast"}


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.BF16])
def test_a_kept_node_is_fp32_between_casts(tmp_path: Path, precision: Precision) -> None:
    source = written(tmp_path / "a.onnx", BODY, opset=22, w=W)
    report = to_precision(source, tmp_path / "b.onnx", precision, keep=["c"])
    found = types_of(tmp_path / "b.onnx")
    assert {name for name, kind in found.items() if kind == "FLOAT"} == {"c"}
    assert report.asked == ("c",)
    assert report.kept == {"MatMul": 1}
    assert report.casts == 4  # at either end of the graph, and of the node


@settings(max_examples=20, deadline=None)
@given(keep=st.sets(st.sampled_from(NODES)))
def test_any_set_can_be_kept_and_the_graph_stays_the_model(
    tmp_path_factory: pytest.TempPathFactory, keep: set[str]
) -> None:
    folder = tmp_path_factory.mktemp("keep")
    source = written(folder / "a.onnx", BODY, w=W)
    to_precision(source, folder / "b.onnx", Precision.FP16, keep=keep)
    found = types_of(folder / "b.onnx")
    assert {name.removesuffix("_float16") for name, kind in found.items() if kind == "FLOAT"} == keep
    onnx.checker.check_model(folder / "b.onnx", full_check=True)
    emulate_low(folder / "b.onnx", folder / "c.onnx")
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    with OnnxRuntimeSession(source) as exact, OnnxRuntimeSession(folder / "c.onnx") as low:
        np.testing.assert_allclose(low.infer({"x": x})["y"], exact.infer({"x": x})["y"], rtol=0, atol=0.01)


def test_a_name_that_no_node_has_is_refused(tmp_path: Path) -> None:
    source = written(tmp_path / "a.onnx", BODY, w=W)
    with pytest.raises(SpecError, match="no node 'z'"):
        to_precision(source, tmp_path / "b.onnx", Precision.FP16, keep=["z"])
    assert not (tmp_path / "b.onnx").exists()


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.TF32])
def test_fp32_keeps_everything_anyway(tmp_path: Path, precision: Precision) -> None:
    source = tmp_path / "a.onnx"
    onnx.save(model_of(BODY, w=W), source)
    with pytest.raises(SpecError, match="no nodes can be kept"):
        to_precision(source, tmp_path / "b.onnx", precision, keep=["a"])
