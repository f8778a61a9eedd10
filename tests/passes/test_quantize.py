"""Where Q/DQ goes, and where it does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graphs import ops, written
from trtship.errors import GraphError, SpecError
from trtship.graphs import load_graph
from trtship.measure import random_inputs
from trtship.passes import emulate_low, to_precision
from trtship.passes.quantize import QuantizeReport, to_quantized
from trtship.passes.quantize_places import Scope, chosen_products, name_of, parse_scope, tensors_to_calibrate
from trtship.session.onnxruntime import OnnxRuntimeSession
from trtship.spec import Precision, from_json, to_json

INT8, FP8 = Precision.INT8, Precision.FP8
QUANTIZED = [INT8, FP8]
PATCH, HEAD = "/patch_embed/proj/Conv/patch embedding/MatMul", "/head/fc/Gemm"


def quantize(
    source: Path, folder: Path, precision: Precision, *, scope: Scope = "all", **more: object
) -> QuantizeReport:
    ranges = dict.fromkeys(tensors_to_calibrate(source), 4.0)
    return to_quantized(source, folder / "q.onnx", precision, ranges, scope=scope, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", QUANTIZED)
def test_the_patch_embedding_and_the_head_stay_out(precision: Precision, digits_graph: Path, tmp_path: Path) -> None:
    report = quantize(digits_graph, tmp_path, precision)
    assert set(report.left_out) == {PATCH, HEAD}
    assert len(report.quantized) == 25  # 4 blocks of q, k, v, projection, fc1, fc2, and the patch merging
    assert from_json(to_json(report), QuantizeReport, what="it") == report


def test_what_follows_one_normalisation_shares_one_pair(digits_graph: Path, tmp_path: Path) -> None:
    report = quantize(digits_graph, tmp_path, INT8)
    assert len(report.tensors) == 17
    model = load_graph(tmp_path / "q.onnx")
    readers = {t.result: [] for t in report.tensors}
    for node in model.graph:
        if node.inputs and node.inputs[0] is not None and node.inputs[0].name in readers:
            readers[node.inputs[0].name].append(node.op_type)
    assert sorted(map(len, readers.values())) == [1] * 13 + [3] * 4
    assert {op for found in readers.values() for op in found} == {"MatMul"}


def test_attention_and_residual_sums_have_no_pair(digits_graph: Path, tmp_path: Path) -> None:
    report = quantize(digits_graph, tmp_path, INT8)
    results = {t.result for t in report.tensors}
    for node in load_graph(tmp_path / "q.onnx").graph:
        if node.op_type in ("Add", "Softmax", "LayerNormalization") or "windows into heads/MatMul" in (node.name or ""):
            assert not results & {value.name for value in node.inputs if value is not None}


@pytest.mark.parametrize("precision", QUANTIZED)
def test_zero_points_are_zero_and_scales_fp16_numbers(precision: Precision, digits_graph: Path, tmp_path: Path) -> None:
    quantize(digits_graph, tmp_path, precision)
    kind = onnx.TensorProto.INT8 if precision is INT8 else onnx.TensorProto.FLOAT8E4M3FN
    model = onnx.load(tmp_path / "q.onnx")
    tensors = {one.name: one for one in model.graph.initializer}
    pairs = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert pairs
    for node in pairs:
        scale = onnx.numpy_helper.to_array(tensors[node.input[1]])
        assert np.array_equal(scale, scale.astype(np.float16).astype(np.float32))
        if len(node.input) > 2:
            assert tensors[node.input[2]].data_type == kind
            assert not onnx.numpy_helper.to_array(tensors[node.input[2]]).astype(np.float32).any()
    stored = [tensors[n.input[0]] for n in pairs if n.op_type == "DequantizeLinear" and n.input[0] in tensors]
    assert len(stored) == 25
    assert {tensor.data_type for tensor in stored} == {kind}


def test_weights_have_a_scale_a_channel_but_one_together_where_they_read_one_tensor(
    digits_graph: Path, tmp_path: Path
) -> None:
    report = quantize(digits_graph, tmp_path, INT8)
    together = {product.node for product in report.products if not product.per_channel}
    assert len(together) == 12
    model = load_graph(tmp_path / "q.onnx")
    by_tensor: dict[str, set[float]] = {}
    for node in model.graph:
        if name_of(node) in report.quantized:
            weights = node.inputs[1].producer()  # type: ignore[union-attr]
            scale = weights.inputs[1].const_value.numpy()  # type: ignore[union-attr]
            channels = node.inputs[1].shape[1]  # type: ignore[union-attr, index]
            assert scale.shape == (() if name_of(node) in together else (channels,))
            if name_of(node) in together:
                by_tensor.setdefault(node.inputs[0].name, set()).add(float(scale))  # type: ignore[union-attr, arg-type]
    assert [len(found) for found in by_tensor.values()] == [1] * 4


def effective(model: ir.Model, name: str) -> np.ndarray:
    """The weights that a quantized product multiplies with, float64, its Mul behind it counted in."""
    node = next(one for one in model.graph if name_of(one) == name)
    stored, scale, *_ = node.inputs[1].producer().inputs  # type: ignore[union-attr]
    weight = stored.const_value.numpy().astype(np.float64) * scale.const_value.numpy()  # type: ignore[union-attr]
    (user,) = node.outputs[0].consumers()
    behind = user.op_type == "Mul" and user.inputs[1].const_value is not None  # type: ignore[union-attr]
    return weight * user.inputs[1].const_value.numpy() if behind else weight  # type: ignore[union-attr]


def softmax(x: np.ndarray) -> np.ndarray:
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def test_the_numbers_are_those_of_a_scale_for_each_channel(tmp_path: Path) -> None:
    """A Gemm with a bias has one scale: the Mul would multiply the bias too."""
    body = """(float[B, 4] x) => (float[B, 4] y) { a = MatMul(x, w) r = Softmax(a) g = Gemm(r, w, b) h = MatMul(g, w)
        i = Softmax(h) y = MatMul(i, w) }"""
    chance = np.random.default_rng(0)
    w = (chance.standard_normal((4, 4)) * [1, 0.3, 0.1, 0.01]).astype(np.float32)
    b = chance.standard_normal(4).astype(np.float32)
    source = written(tmp_path / "g.onnx", body, opset=20, w=w, b=b)
    report = quantize(source, tmp_path, INT8, channels_behind=True)
    assert {p.node: p.per_channel for p in report.products} == {"g": False, "h": True}
    assert [p.result for p in report.products] == ["g", "h"]
    model = load_graph(tmp_path / "q.onnx")
    steps = {"g": np.abs(w).max() / 127, "h": np.abs(w).max(0) / 127}
    for name, step in steps.items():
        assert (np.abs(effective(model, name) - w) <= step / 2 * (1 + 2.0**-9)).all()  # two roundings upwards to fp16
    scale = {tensor.name: tensor.scale for tensor in report.tensors}
    x = chance.standard_normal((64, 4)).astype(np.float32)

    def rounded(value: np.ndarray, name: str) -> np.ndarray:
        return np.clip(np.rint(value / scale[name]), -128, 127) * scale[name]

    r = softmax(x.astype(np.float64) @ w)
    g = rounded(r, "r") @ effective(model, "g") + b
    expected = softmax(rounded(g, "g") @ effective(model, "h")) @ w
    with OnnxRuntimeSession(tmp_path / "q.onnx", optimize=False) as session:
        found = session.infer({"x": x})["y"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=2.0**-24 * 64)  # fp32, in some 60 operations a number


@pytest.mark.parametrize("precision", QUANTIZED)
def test_channels_behind_leave_every_weight_one_scale(precision: Precision, digits_graph: Path, tmp_path: Path) -> None:
    channels, behind = (quantize(digits_graph, tmp_path, precision, channels_behind=one) for one in (False, True))
    assert [(p.node, p.result, p.per_channel) for p in behind.products] == [
        (p.node, p.result, p.per_channel) for p in channels.products
    ]
    model = load_graph(tmp_path / "q.onnx")
    scales = [node.inputs[1] for node in model.graph if node.op_type == "DequantizeLinear"]
    assert {value.shape.rank() for value in scales} == {0}  # type: ignore[union-attr]
    makers = {value.name: node for node in model.graph for value in node.outputs}
    for product in behind.products:
        assert makers[product.result].op_type == ("Mul" if product.per_channel else "MatMul")


@pytest.mark.parametrize(("precision", "left"), [(INT8, ("fc1", "fc2")), (FP8, ("fc1",))])
def test_fused_leaves_out_what_would_take_a_gelu_apart(
    precision: Precision, left: tuple[str, ...], digits_graph: Path, tmp_path: Path
) -> None:
    report = quantize(digits_graph, tmp_path, precision, scope="fused")
    out = set(report.left_out) - {PATCH, HEAD}
    assert len(out) == 4 * len(left)
    assert all(any(f"/mlp/{one}/" in name for one in left) for name in out)


@pytest.mark.parametrize("opset", [17, 20])
def test_a_gelu_is_known_written_out_too(opset: int, tmp_path: Path) -> None:
    body = """(float[B, 4] x) => (float[B, 4] y) { a = MatMul(x, w0) r = Relu(a) n = LayerNormalization(r, g)
        b = MatMul(n, w1) c = Add(b, g) d = Div(c, root) e = Erf(d) f = Add(e, one) h = Mul(c, f) i = Mul(h, half)
        j = MatMul(i, w2) s = Softmax(j) y = MatMul(s, w3) }"""
    eye = np.eye(4, dtype=np.float32)
    numbers = {"root": 2**0.5, "one": 1.0, "half": 0.5}
    arrays = {f"w{i}": eye for i in range(4)} | {name: np.array(v, np.float32) for name, v in numbers.items()}
    source = written(tmp_path / "g.onnx", body, opset=opset, g=np.ones(4, np.float32), **arrays)
    model = load_graph(source)
    for precision, names in ((INT8, []), (FP8, ["j"])):
        chosen, _ = chosen_products(model.graph, precision, scope="fused")
        assert [name_of(product.node) for product in chosen] == names
    chosen, _ = chosen_products(model.graph, INT8, scope="all")
    assert [name_of(product.node) for product in chosen] == ["b", "j"]


@pytest.mark.parametrize("precision", QUANTIZED)
def test_weights_alone_need_no_ranges(precision: Precision, digits_graph: Path, tmp_path: Path) -> None:
    report = to_quantized(digits_graph, tmp_path / "q.onnx", precision, {}, scope="weights")
    assert len(report.products) == 25
    assert report.tensors == ()
    assert all(product.per_channel for product in report.products)
    assert "QuantizeLinear" not in ops(tmp_path / "q.onnx")
    model = load_graph(tmp_path / "q.onnx")
    weights = [n.inputs[1].producer().inputs[0] for n in model.graph if name_of(n) in report.quantized]  # type: ignore[union-attr]
    assert {value.dtype.itemsize for value in weights} == {1}  # type: ignore[union-attr]
    full = [p.weight.name for p in chosen_products(load_graph(digits_graph).graph, precision, scope="all")[0]]
    assert not set(full) & set(model.graph.initializers)


NAMES = 25


@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(out=st.sets(st.integers(0, NAMES - 1)))
def test_excluded_nodes_are_as_they_were(out: set[int], digits_graph: Path, tmp_path: Path) -> None:
    before = load_graph(digits_graph)
    names = [name_of(p.node) for p in chosen_products(before.graph, INT8, scope="all")[0]]
    assert len(names) == NAMES
    exclude = {names[index] for index in out}
    report = quantize(digits_graph, tmp_path, INT8, exclude=exclude)
    assert set(report.quantized) == set(names) - exclude
    after = {name_of(node): node for node in load_graph(tmp_path / "q.onnx").graph}
    for node in before.graph:
        if name_of(node) in report.quantized:
            continue
        same = after[name_of(node)]
        assert (same.op_type, [v and v.name for v in same.inputs]) == (
            node.op_type,
            [v and v.name for v in node.inputs],
        )
        for value, other in zip(node.inputs, same.inputs, strict=True):
            if value is not None and value.const_value is not None:
                assert other is not None
                assert np.array_equal(value.const_value.numpy(), other.const_value.numpy())  # type: ignore[union-attr]


def test_a_graph_without_products_is_left_as_it_is_and_said_to_be_so(tmp_path: Path) -> None:
    source = written(tmp_path / "g.onnx", "(float[B, 4] x) => (float[B, 4] y) { y = Relu(x) }", opset=18)
    report = to_quantized(source, tmp_path / "q.onnx", INT8, {})
    assert report.products == ()
    assert report.left_out == {}
    assert ops(tmp_path / "q.onnx") == ["Relu"]
    assert onnx.load(tmp_path / "q.onnx").opset_import[0].version == 18
    with pytest.raises(GraphError, match="not quantized"):
        to_precision(tmp_path / "q.onnx", tmp_path / "typed.onnx", INT8)


def test_mistakes_are_refused(digits_graph: Path, tmp_path: Path) -> None:
    target = tmp_path / "q.onnx"
    with pytest.raises(SpecError, match="no range for the tensor"):
        to_quantized(digits_graph, target, INT8, {})
    with pytest.raises(SpecError, match="no node 'nobody'"):
        to_quantized(digits_graph, target, INT8, {}, exclude=["nobody"])
    with pytest.raises(SpecError, match="fp16 needs no quantization"):
        to_quantized(digits_graph, target, Precision.FP16, {})
    with pytest.raises(SpecError, match="--quantize 'some'"):
        parse_scope("some")
    assert not target.exists()


def test_an_older_opset_is_raised(tmp_path: Path) -> None:
    body = """(float[B, 4] x) => (float[B, 4] y) { a = MatMul(x, w) s = Softmax(a) c = MatMul(s, w) n = Softmax(c)
        y = MatMul(n, w) }"""
    source = written(tmp_path / "g.onnx", body, opset=17, w=np.eye(4, dtype=np.float32))
    assert quantize(source, tmp_path, FP8).quantized == ("c",)
    assert onnx.load(tmp_path / "q.onnx").opset_import[0].version == 19
    with OnnxRuntimeSession(tmp_path / "q.onnx", optimize=False) as session:
        assert np.isfinite(session.infer({"x": np.ones((2, 4), np.float32)})["y"]).all()


def test_a_convolution_has_a_scale_for_each_of_its_outputs(exported: Callable[[str], Path], tmp_path: Path) -> None:
    source = exported("convnext")
    report = quantize(source, tmp_path, INT8)
    shapes = {name_of(n): n.inputs[1].shape for n in load_graph(tmp_path / "q.onnx").graph if n.op_type == "Conv"}
    convolutions = [p for p in report.products if p.node in shapes]
    assert convolutions
    assert all(product.per_channel and product.weight_error < 0.02 for product in convolutions)


def test_convolutions_stay_out_where_they_cost_kernels_or_have_none(
    exported: Callable[[str], Path], tmp_path: Path
) -> None:
    source = exported("convnext")
    convolutions = {name_of(node) for node in load_graph(source).graph if node.op_type == "Conv"}
    everything = quantize(source, tmp_path, INT8)
    assert convolutions & set(everything.quantized)
    for report in (
        quantize(source, tmp_path, FP8, scope="fused"),
        quantize(source, tmp_path, INT8, convolutions=False),
    ):
        assert report.quantized == ()  # this one has no other products but its head
        assert set(report.left_out) >= convolutions
    weights = to_quantized(source, tmp_path / "w.onnx", INT8, {}, scope="weights", convolutions=False)
    assert set(weights.quantized) == set(everything.quantized)


@pytest.mark.parametrize("precision", QUANTIZED)
def test_everything_between_the_pairs_becomes_fp16(precision: Precision, digits_graph: Path, tmp_path: Path) -> None:
    report = quantize(digits_graph, tmp_path, precision)
    to_precision(tmp_path / "q.onnx", tmp_path / "typed.onnx", precision)
    model = ir.passes.Sequential(ir.passes.common.ShapeInferencePass())(load_graph(tmp_path / "typed.onnx")).model
    stored = ir.DataType.INT8 if precision is INT8 else ir.DataType.FLOAT8E4M3FN
    for node in model.graph:
        if node.op_type == "QuantizeLinear":
            assert [v.dtype for v in node.inputs[:2]] == [ir.DataType.FLOAT16] * 2  # type: ignore[union-attr]
            assert node.outputs[0].dtype == stored
        if name_of(node) in report.quantized:
            assert {v.dtype for v in (*node.inputs, *node.outputs)} == {ir.DataType.FLOAT16}  # type: ignore[union-attr]
    emulate_low(tmp_path / "typed.onnx", tmp_path / "emulated.onnx")
    inputs = None
    found = {}
    for name in ("q", "emulated"):
        with OnnxRuntimeSession(tmp_path / f"{name}.onnx", optimize=False) as session:
            inputs = inputs or random_inputs(session.inputs, {"B": 2})
            found[name] = next(iter(session.infer(inputs).values()))
    assert np.isfinite(found["emulated"]).all()
