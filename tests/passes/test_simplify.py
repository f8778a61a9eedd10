from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from graphs import SMALL, model_of, ops, pictures, small_model, written
from trtship.errors import GraphError, OutputError
from trtship.graphs import graph_files
from trtship.passes import simplify
from trtship.session.onnxruntime import OnnxRuntimeSession

REDUNDANT = """(float[B, 4] x) => (float[B, 4] y) {
    a = Identity(x)
    two = Constant<value_float = 2.0>()
    three = Constant<value_float = 3.0>()
    six = Mul(two, three)
    y = Mul(a, six)
}"""


@pytest.mark.parametrize("name", SMALL)
def test_real_models_come_out_smaller_and_the_same(name: str, exported: Callable[[str], Path], tmp_path: Path) -> None:
    source, target = exported(name), tmp_path / "out.onnx"
    report = simplify(source, target)
    assert report.kept == "simplified"
    assert (report.nodes_before, report.nodes_after) == (len(ops(source)), len(ops(target)))
    assert len(ops(target)) < len(ops(source))
    assert {d.measure.sizes["B"] for d in report.differences} == {1, 2, 3}
    x = pictures(name, 5)
    with torch.no_grad():
        expected = small_model(name)(x)
    with OnnxRuntimeSession(target) as session:
        assert session.inputs[0].shape[0] == "B"
        found = session.infer({"input": x})["logits"]
    assert report.bound is not None
    assert float((found - expected).norm() / expected.norm()) < report.bound


def test_products_keep_their_bias_as_an_add(exported: Callable[[str], Path], tmp_path: Path) -> None:
    simplify(exported("swin"), tmp_path / "out.onnx")
    assert ops(tmp_path / "out.onnx").count("Gemm") == ops(exported("swin")).count("Gemm")


def test_constants_fold_and_no_ops_go(tmp_path: Path) -> None:
    report = simplify(written(tmp_path / "a.onnx", REDUNDANT), tmp_path / "b.onnx")
    assert report.kept == "simplified"
    assert ops(tmp_path / "b.onnx") == ["Constant", "Mul"]


def test_a_graph_with_nothing_to_simplify_is_the_same(tmp_path: Path) -> None:
    source = written(tmp_path / "a.onnx", "(float[B, 4] x) => (float[B, 4] y) { y = Neg(x) }")
    report = simplify(source, tmp_path / "b.onnx")
    assert (report.nodes_before, report.nodes_after, report.kept) == (1, 1, "simplified")


STAND_INS = {
    "import os\ndef simplify(*a, **k): os.abort()": "onnxsim crashed (SIGABRT)",
    "def simplify(*a, **k): raise RuntimeError('no such luck')": "onnxsim failed: RuntimeError: no such luck",
    "import onnx\ndef simplify(p, **k): return onnx.load(p), False": "its outputs differ",
    """import onnx
def simplify(p, **k):
    m = onnx.load(p)
    m.graph.node[-1].op_type = 'Add'
    return m, True""": "other outputs",
    """import onnx
def simplify(p, **k):
    m = onnx.load(p)
    m.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 1
    return m, True""": "changed the inputs or outputs",
    """import onnx
def simplify(p, **k):
    m = onnx.load(p)
    m.graph.node[-1].op_type = 'Frobnicate'
    return m, True""": "not a valid ONNX graph",
}


@pytest.mark.parametrize(("code", "why"), STAND_INS.items(), ids=list(STAND_INS.values()))
def test_when_onnxsim_goes_wrong_the_original_is_kept(
    code: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "onnxsim.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "onnxsim", raising=False)
    source = written(tmp_path / "a.onnx", REDUNDANT)
    report = simplify(source, tmp_path / "b.onnx")
    assert report.kept == "original"
    assert why in report.why
    assert ops(tmp_path / "b.onnx") == ops(source)


def test_external_data_is_read_and_written(tmp_path: Path) -> None:
    w = np.arange(4000, dtype=np.float32)
    onnx.save(
        model_of("(float[B, 4000] x) => (float[B, 4000] y) { a = Identity(x) y = Mul(a, w) }", w=w),
        tmp_path / "a.onnx",
        save_as_external_data=True,
        location="weights.bin",
    )
    report = simplify(tmp_path / "a.onnx", tmp_path / "out" / "b.onnx", external_over=1000)
    assert report.kept == "simplified"
    assert [file.name for file in graph_files(tmp_path / "out" / "b.onnx")] == ["b.onnx", "b.onnx.data"]
    with OnnxRuntimeSession(tmp_path / "out" / "b.onnx") as session:
        assert np.array_equal(session.infer({"x": np.ones((1, 4000), np.float32)})["y"], w[None])


def test_a_graph_that_does_not_run_is_the_users_error(tmp_path: Path) -> None:
    body = "(float[B, 4] x) => (float[B, 4] y) { s = Constant<value_ints = [7, 4]>() y = Reshape(x, s) }"
    with pytest.raises(GraphError, match="Reshape"):
        simplify(written(tmp_path / "a.onnx", body), tmp_path / "b.onnx")
    assert not (tmp_path / "b.onnx").exists()


def test_bad_sources_and_targets(tmp_path: Path) -> None:
    (tmp_path / "notes.onnx").write_text("hello")
    with pytest.raises(GraphError):
        simplify(tmp_path / "notes.onnx", tmp_path / "b.onnx")
    source = written(tmp_path / "a.onnx", REDUNDANT)
    with pytest.raises(OutputError):
        simplify(source, source / "b.onnx")


def test_stdout_stays_empty(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    simplify(written(tmp_path / "a.onnx", REDUNDANT), tmp_path / "b.onnx")
    assert capfd.readouterr().out == ""
