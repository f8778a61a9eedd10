from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphs import SMALL, model_of, ops, written
from trtship.errors import GraphError, SpecError
from trtship.graphs import graph_files, load_graph
from trtship.passes import PrecisionReport, to_precision
from trtship.session.onnxruntime import OnnxRuntimeSession
from trtship.spec import Precision

FP16, BF16 = Precision.FP16, Precision.BF16
LOW = pytest.mark.parametrize("precision", [FP16, BF16])


def convert(
    folder: Path, body: str, precision: Precision = FP16, *, io_dtype: str = "float32", opset: int = 20, **tensors: Any
) -> tuple[ir.Model, PrecisionReport]:
    source = written(folder / "a.onnx", body, opset=opset, **tensors)
    report = to_precision(source, folder / "b.onnx", precision, io_dtype=io_dtype)
    return load_graph(folder / "b.onnx"), report


def computes_in(model: ir.Model) -> dict[str, str]:
    """Operator -> the float types of what it produces; casts apart."""
    from onnx_ir.passes.common import ShapeInferencePass

    ShapeInferencePass()(model)
    found: dict[str, set[str]] = {}
    for node in model.graph:
        if node.op_type != "Cast":
            kinds = {str(value.dtype) for value in node.outputs if value.dtype is not None}
            found.setdefault(node.op_type, set()).update(kinds)
    return {op: "+".join(sorted(kinds)) for op, kinds in found.items()}


def casts(model: ir.Model) -> int:
    return sum(node.op_type == "Cast" for node in model.graph)


def run(path: Path, **feeds: np.ndarray) -> dict[str, np.ndarray]:
    with OnnxRuntimeSession(path) as session:
        return session.infer(feeds)


W = np.linspace(-1, 1, 16, dtype=np.float32).reshape(4, 4)


# What becomes low, what stays


@LOW
def test_products_and_activations_are_low_with_one_cast_at_either_end(tmp_path: Path, precision: Precision) -> None:
    body = "(float[B, 4] x) => (float[B, 4] y) { a = MatMul(x, w) b = Relu(a) c = MatMul(b, w) y = Add(x, c) }"
    model, report = convert(tmp_path, body, precision, w=W)
    assert set(computes_in(model).values()) == {precision.graph_dtype.upper()}
    assert (casts(model), report.casts, report.low, report.kept, report.constants) == (2, 2, 4, {}, 1)
    assert [value.name for value in model.graph.outputs] == ["y"]


@LOW
def test_softmax_is_in_fp32_between_two_casts(tmp_path: Path, precision: Precision) -> None:
    body = "(float[B, 4] x) => (float[B, 4] y) { a = MatMul(x, w) p = Softmax(a) y = MatMul(p, w) }"
    model, report = convert(tmp_path, body, precision, w=W)
    assert ops(tmp_path / "b.onnx") == ["Cast", "MatMul", "Cast", "Softmax", "Cast", "MatMul", "Cast"]
    assert computes_in(model)["Softmax"] == "FLOAT"
    assert report.kept == {"Softmax": 1}


@LOW
def test_layer_normalization_says_that_its_statistics_are_fp32(tmp_path: Path, precision: Precision) -> None:
    body = "(float[B, 4] x) => (float[B, 4] y) { a = MatMul(x, w) n = LayerNormalization(a, s, s) y = MatMul(n, w) }"
    model, _ = convert(tmp_path, body, precision, w=W, s=W[0])
    (norm,) = [node for node in model.graph if node.op_type == "LayerNormalization"]
    assert norm.attributes["stash_type"].as_int() == 1
    assert computes_in(model)["LayerNormalization"] == precision.graph_dtype.upper()
    assert {str(value.dtype) for value in norm.inputs if value is not None} == {precision.graph_dtype.upper()}


LAYER_NORM = """(float[B, 4] x) => (float[B, 4] y) {
    a = MatMul(x, w)
    axes = Constant<value_ints = [-1]>()
    mean = ReduceMean(a, axes)
    centred = Sub(a, mean)
    two = Constant<value_float = 2.0>()
    square = Pow(centred, two)
    variance = ReduceMean(square, axes)
    epsilon = Constant<value_float = 0.00001>()
    shifted = Add(variance, epsilon)
    deviation = Sqrt(shifted)
    normal = Div(centred, deviation)
    scaled = Mul(normal, scale)
    biased = Add(scaled, scale)
    y = MatMul(biased, w)
}"""


@LOW
def test_a_layer_norm_written_out_is_fp32_from_first_to_last(tmp_path: Path, precision: Precision) -> None:
    model, _ = convert(tmp_path, LAYER_NORM, precision, w=W, scale=W[0])
    kinds = computes_in(model)
    assert kinds.pop("MatMul") == precision.graph_dtype.upper()
    assert set(kinds.values()) == {"FLOAT"}
    assert casts(model) == 4


def test_a_layer_norm_written_out_survives_large_activations(tmp_path: Path) -> None:
    convert(tmp_path, LAYER_NORM, w=np.eye(4, dtype=np.float32), scale=np.ones(4, np.float32))
    x = np.array([[3e4, -3e4, 2e4, 1e4]], np.float32)
    exact, low = run(tmp_path / "a.onnx", x=x)["y"], run(tmp_path / "b.onnx", x=x)["y"]
    assert np.allclose(low, exact, rtol=4 * FP16.unit_roundoff)


@LOW
@pytest.mark.parametrize("norm", ["n = ReduceL2(a, axes)", "q = Mul(a, a) r = ReduceSum(q, axes) n = Sqrt(r)"])
def test_normalize_is_in_fp32(tmp_path: Path, precision: Precision, norm: str) -> None:
    body = f"""(float[B, 4] x) => (float[B, 4] y) {{
        a = MatMul(x, w)
        axes = Constant<value_ints = [-1]>()
        {norm}
        epsilon = Constant<value_float = 0.000000000001>()
        m = Max(n, epsilon)
        shape = Shape(a)
        e = Expand(m, shape)
        d = Div(a, e)
        y = MatMul(d, w)
    }}"""
    model, _ = convert(tmp_path, body, precision, w=W)
    kinds = computes_in(model)
    assert kinds.pop("MatMul") == precision.graph_dtype.upper()
    assert kinds.pop("Shape") == "INT64"
    assert set(kinds.values()) == {"FLOAT"}


def test_a_norm_does_not_drag_the_residual_stream_into_fp32(tmp_path: Path) -> None:
    body = LAYER_NORM.replace("y = MatMul(biased, w)", "r = Add(a, biased) t = Add(r, r) y = MatMul(t, w)")
    model, report = convert(tmp_path, body, w=W, scale=W[0])
    residual = [node for node in model.graph if node.op_type == "Add"][-2:]
    assert {str(node.outputs[0].dtype) for node in residual} == {"FLOAT16"}
    assert report.kept["Add"] == 2


@LOW
def test_index_arithmetic_stays_exact(tmp_path: Path, precision: Precision) -> None:
    body = """(int64[B] i, float[5000] table) => (float[B] y) {
        f = Cast<to = 1>(i)
        three = Constant<value_float = 3.0>()
        g = Div(f, three)
        h = Floor(g)
        j = Cast<to = 7>(h)
        y = Gather(table, j)
    }"""
    _, report = convert(tmp_path, body, precision)
    assert report.kept == {"Cast": 2, "Div": 1, "Floor": 1}


def test_an_operator_without_a_low_form_stays(tmp_path: Path) -> None:
    body = """(float[1, 3, 8, 8] x, float[1, 2, 2, 2] g) => (float[1, 3, 2, 2] y) { y = GridSample(x, g) }"""
    model, report = convert(tmp_path, body)
    assert report.kept == {"GridSample": 1}
    assert casts(model) == 0


def test_a_resizes_scales_stay_fp32(tmp_path: Path) -> None:
    body = "(float[1, 2, 4, 4] x) => (float[1, 2, 8, 8] y) { a = Relu(x) y = Resize(a, , s) }"
    model, _ = convert(tmp_path, body, s=np.array([1, 1, 2, 2], np.float32))
    (resize,) = [node for node in model.graph if node.op_type == "Resize"]
    assert [str(v.dtype) for v in resize.inputs if v is not None] == ["FLOAT16", "FLOAT"]


def test_two_users_share_a_cast_and_a_constant(tmp_path: Path) -> None:
    body = """(float[B, 4] x) => (float[B, 4] y) {
        p = Softmax(x) a = MatMul(p, w) b = MatMul(p, w) y = Add(a, b)
    }"""
    model, report = convert(tmp_path, body, w=W)
    assert (casts(model), report.constants) == (2, 1)
    assert list(model.graph.initializers) == ["w"]


def test_a_constant_that_both_kinds_use_is_kept_twice(tmp_path: Path) -> None:
    body = "(float[4, 4] x) => (float[4, 4] y) { p = Softmax(x) q = Pow(p, w) y = MatMul(q, w) }"
    model, _ = convert(tmp_path, body, w=np.abs(W))
    assert {str(v.dtype) for v in model.graph.initializers.values()} == {"FLOAT", "FLOAT16"}
    assert "w" in model.graph.initializers


# Constants


def test_weights_are_rounded_to_nearest(tmp_path: Path) -> None:
    body = "(float[B, 4] x) => (float[B, 4] y) { y = MatMul(x, w) }"
    for precision, dtype in ((FP16, np.float16), (BF16, ml_dtypes.bfloat16)):
        model, _ = convert(tmp_path, body, precision, w=W / 3)
        tensor = model.graph.initializers["w"].const_value
        assert tensor is not None
        assert np.array_equal(tensor.numpy(), (W / 3).astype(dtype))


def test_weights_beyond_fp16_are_clipped_and_reported(tmp_path: Path) -> None:
    w = W.copy()
    w[0] = [7e4, -np.inf, 1e-9, 65504]
    body = "(float[B, 4] x) => (float[B, 4] y) { y = MatMul(x, w) }"
    model, report = convert(tmp_path, body, w=w)
    tensor = model.graph.initializers["w"].const_value
    assert tensor is not None
    assert tensor.numpy()[0].tolist() == [65504, -np.inf, 0, 65504]
    assert [(c.name, c.count) for c in report.clipped] == [("w", 1)]
    assert report.underflowed == 1
    _, report = convert(tmp_path, body, BF16, w=w)
    assert (report.clipped, report.underflowed) == ((), 0)


@pytest.mark.parametrize("masked", [-100.0, -1e9, float(np.finfo(np.float32).min), -np.inf])
def test_a_masked_softmax_is_the_same_whatever_the_mask_says_never(tmp_path: Path, masked: float) -> None:
    mask = np.array([[0, masked, 0, masked]], np.float32)
    body = "(float[B, 4] x) => (float[B, 4] y) { s = MatMul(x, w) m = Add(s, mask) y = Softmax(m) }"
    convert(tmp_path, body, w=W, mask=mask)
    x = np.array([[-3, 1, 2, 0.5]], np.float32)
    exact, low = run(tmp_path / "a.onnx", x=x)["y"], run(tmp_path / "b.onnx", x=x)["y"]
    assert np.allclose(low, exact, atol=8 * FP16.unit_roundoff)


def test_a_row_that_is_masked_whole_stays_finite(tmp_path: Path) -> None:
    mask = np.full((1, 4), np.finfo(np.float32).min)
    body = "(float[B, 4] x) => (float[B, 4] y) { s = MatMul(x, w) m = Add(s, mask) y = Softmax(m) }"
    _, report = convert(tmp_path, body, w=W, mask=mask)
    assert np.allclose(run(tmp_path / "b.onnx", x=np.ones((1, 4), np.float32))["y"], 0.25)
    assert report.kept == {"Add": 1, "Softmax": 1}


def test_a_mask_computed_from_integers_stays_in_range(tmp_path: Path) -> None:
    body = """(float[B, 4] x, int64[B, 4] seen) => (float[B, 4] y) {
        f = Cast<to = 1>(seen)
        one = Constant<value_float = 1.0>()
        hidden = Sub(one, f)
        never = Constant<value_float = -3.0e38>()
        mask = Mul(hidden, never)
        s = MatMul(x, w)
        m = Add(s, mask)
        y = Softmax(m)
    }"""
    convert(tmp_path, body, w=W)
    x, seen = np.ones((2, 4), np.float32), np.array([[1, 1, 0, 0], [0, 0, 0, 0]])
    exact, low = (run(tmp_path / name, x=x, seen=seen)["y"] for name in ("a.onnx", "b.onnx"))
    assert np.isfinite(low).all()
    assert np.allclose(low, exact, atol=8 * FP16.unit_roundoff)


def test_an_epsilon_that_fp16_lacks_still_guards_a_division(tmp_path: Path) -> None:
    body = """(float[B, 4] x) => (float[B, 4] y) {
        epsilon = Constant<value_float = 0.000000000001>()
        a = MatMul(x, w) r = Relu(a) d = Add(r, epsilon) y = Div(r, d)
    }"""
    convert(tmp_path, body, w=np.zeros((4, 4), np.float32))
    assert run(tmp_path / "b.onnx", x=np.ones((1, 4), np.float32))["y"].tolist() == [[0, 0, 0, 0]]


# Inputs and outputs


@LOW
@pytest.mark.parametrize("io", ["float32", "low"])
def test_inputs_and_outputs_have_the_type_asked_for(tmp_path: Path, precision: Precision, io: str) -> None:
    io_dtype = "float32" if io == "float32" else precision.graph_dtype
    body = """(float[B, 4] x, int64[B] n) => (float[B, 4] y, float[B, 4] p, int64[B] m) {
        y = MatMul(x, w) p = Softmax(y) m = Add(n, n)
    }"""
    model, report = convert(tmp_path, body, precision, io_dtype=io_dtype, w=W)
    kind = "FLOAT" if io == "float32" else precision.graph_dtype.upper()
    assert [str(v.dtype) for v in model.graph.inputs] == [kind, "INT64"]
    assert [(v.name, str(v.dtype)) for v in model.graph.outputs] == [("y", kind), ("p", kind), ("m", "INT64")]
    assert [str(v.shape) for v in model.graph.outputs] == ["[B,4]", "[B,4]", "[B]"]
    assert report.io_dtype == io_dtype


def test_an_output_that_is_used_inside_too_is_cast_once(tmp_path: Path) -> None:
    body = "(float[B, 4] x) => (float[B, 4] y, float[B, 4] z) { y = MatMul(x, w) z = MatMul(y, w) }"
    convert(tmp_path, body, w=W)
    assert ops(tmp_path / "b.onnx").count("Cast") == 3
    exact, low = (run(tmp_path / n, x=np.ones((2, 4), np.float32)) for n in ("a.onnx", "b.onnx"))
    assert all(np.allclose(low[n], exact[n], atol=1e-2) for n in ("y", "z"))


def test_other_io_types_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="float32 or float16"):
        convert(tmp_path, "(float[4] x) => (float[4] y) { y = Neg(x) }", io_dtype="bfloat16")


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.TF32])
def test_fp32_and_tf32_leave_the_graph_alone(tmp_path: Path, precision: Precision) -> None:
    body = "(float[B, 4] x) => (float[B, 4] y) { a = MatMul(x, w) y = Softmax(a) }"
    model, report = convert(tmp_path, body, precision, w=W)
    assert ops(tmp_path / "b.onnx") == ["MatMul", "Softmax"]
    assert str(model.graph.initializers["w"].dtype) == "FLOAT"
    assert report == PrecisionReport(precision=precision, io_dtype="float32")


# Other graphs


def test_a_graph_with_a_branch_is_refused_by_name(tmp_path: Path) -> None:
    body = """(bool c, float[4] x) => (float[4] y) {
        [choose] y = If (c) <
            then_branch = t () => (float[4] a) { a = Neg(x) },
            else_branch = e () => (float[4] b) { b = Abs(x) }
        >
    }"""
    with pytest.raises(GraphError, match=r"choose \(If\)"):
        convert(tmp_path, body)
    assert not (tmp_path / "b.onnx").exists()


def test_functions_are_inlined(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["": 20, "own": 1]>
        g (float[B, 4] x) => (float[B, 4] y) { a = own.Twice(x) y = MatMul(a, w) }
        <domain: "own", opset_import: ["": 20]> Twice (v) => (r) { r = Add(v, v) }"""
    model = onnx.parser.parse_model(text)
    model.graph.initializer.append(onnx.numpy_helper.from_array(W, "w"))
    onnx.save(model, tmp_path / "a.onnx")
    report = to_precision(tmp_path / "a.onnx", tmp_path / "b.onnx", FP16)
    assert ops(tmp_path / "b.onnx") == ["Cast", "Add", "MatMul", "Cast"]
    assert report.low == 2


def test_bf16_raises_the_opset_where_that_only_adds_types(tmp_path: Path) -> None:
    body = "(float[B, 3, 8, 8] x) => (float[B, 2, 6, 6] y) { y = Conv(x, w) }"
    model, report = convert(tmp_path, body, BF16, opset=18, w=np.ones((2, 3, 3, 3), np.float32))
    assert model.opset_imports[""] == 22
    assert report.low == 1
    model, _ = convert(tmp_path, body, FP16, opset=18, w=np.ones((2, 3, 3, 3), np.float32))
    assert model.opset_imports[""] == 18


def test_bf16_refuses_an_opset_whose_operators_meant_something_else(tmp_path: Path) -> None:
    body = "(float[B, 4] x) => (float[B, 1] y) { y = ReduceMean<axes = [1]>(x) }"
    with pytest.raises(GraphError, match="ReduceMean") as caught:
        convert(tmp_path, body, BF16, opset=17)
    assert "--opset 22" in caught.value.do


def test_external_data_comes_and_goes(tmp_path: Path) -> None:
    w = np.ones((64, 64), np.float32)
    model = model_of("(float[B, 64] x) => (float[B, 64] y) { y = MatMul(x, w) }", w=w)
    onnx.save(model, tmp_path / "a.onnx", save_as_external_data=True, location="weights.bin")
    to_precision(tmp_path / "a.onnx", tmp_path / "b.onnx", FP16, external_over=1000)
    assert [(p.name, p.stat().st_size >= 64 * 64 * 2) for p in graph_files(tmp_path / "b.onnx")][1] == (
        "b.onnx.data",
        True,
    )
    assert run(tmp_path / "b.onnx", x=np.ones((1, 64), np.float32))["y"][0, 0] == 64


@LOW
@pytest.mark.parametrize("name", SMALL)
def test_real_models_keep_their_statistics_and_nothing_else(
    name: str, precision: Precision, exported: Callable[[str], Path], tmp_path: Path
) -> None:
    report = to_precision(exported(name), tmp_path / "b.onnx", precision)
    model = load_graph(tmp_path / "b.onnx")
    before = Counter(ops(exported(name)))
    assert set(report.kept) <= {"Softmax", "ReduceMean", "ReduceL2", "Clip", "Expand", "Div", "Reshape", "Gather"} | (
        {"Transpose"} if name == "convnext" else {"Sigmoid"} if name == "swinv2" else set()
    ) | {"Gemm"}
    assert report.kept["Gemm"] == 1  # the head
    assert report.kept.get("Softmax", 0) == before["Softmax"]
    assert report.casts <= 2 + 2 * report.kept.get("Softmax", 0) + 2 + 2 * report.kept.get("ReduceL2", 0)
    *products, head = [node for node in model.graph if node.op_type in ("MatMul", "Gemm", "Conv")]
    kinds = {str(v.dtype) for node in products for v in node.inputs if v is not None and v.dtype is not None}
    assert kinds == {precision.graph_dtype.upper()}
    assert {str(v.dtype) for v in head.inputs if v is not None} == {"FLOAT"}
