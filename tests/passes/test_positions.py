"""What rounding would break stays in fp32: positions, sines, coordinates, steps, sizes, and the chain to each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from positions_models import UPSAMPLING, Rotary, Steps, exported, upsampling

from graphs import written
from trtship.graphs import load_graph
from trtship.graphs.noisy import add_noise, noise_sizes
from trtship.graphs.positions import exact_nodes, positions, stepwise_nodes
from trtship.passes import emulate_low, to_precision
from trtship.session.onnxruntime import OnnxRuntimeSession
from trtship.spec import Precision

FP16, BF16, TF32 = Precision.FP16, Precision.BF16, Precision.TF32
W = np.linspace(-1, 1, 16, dtype=np.float32).reshape(4, 4)
PICTURE = np.linspace(-1, 1, 3 * 8 * 8, dtype=np.float32).reshape(1, 3, 8, 8)


def typed(path: Path) -> Any:
    from onnx_ir.passes.common import ShapeInferencePass

    model = load_graph(path)
    ShapeInferencePass()(model)
    return model


def in_precision(source: Path, precision: Precision, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run the graph in the precision, every low tensor rounded."""
    low, emulated = source.with_suffix(".low.onnx"), source.with_suffix(".emulated.onnx")
    to_precision(source, low, precision)
    emulate_low(low, emulated)
    with OnnxRuntimeSession(emulated) as session:
        return session.infer(feeds)


def kinds(path: Path) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for node in typed(path).graph:
        found.setdefault(node.op_type, set()).update(str(v.dtype) for v in node.outputs)
    return found


@pytest.mark.parametrize(
    ("kind", "precision", "bound"), [(torch.int64, FP16, 2e-3), (torch.float32, BF16, 1.5e-2)], ids=["fp16", "bf16"]
)
def test_a_sinusoidal_embedding_of_large_steps_is_right(
    kind: torch.dtype, precision: Precision, bound: float, tmp_path: Path
) -> None:
    module, t = Steps(), torch.tensor([[0], [1], [500], [977], [999]]).to(kind)
    graph = exported(module, (t,), tmp_path / "a.onnx", ["t"])
    found, expected = in_precision(graph, precision, {"t": t.numpy()})["y"], module(t).detach().numpy()
    assert np.linalg.norm(found - expected, axis=1).max() < bound * np.linalg.norm(expected, axis=1).min()


@pytest.mark.parametrize(("precision", "bound"), [(BF16, 1.5e-2), (TF32, 1e-5)])
def test_a_rotary_embedding_is_right_far_from_the_beginning(precision: Precision, bound: float, tmp_path: Path) -> None:
    module, x = Rotary(), torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    place = torch.tensor([[0, 1, 500, 3001, 4095]] * 2)
    graph = exported(module, (x, place), tmp_path / "a.onnx", ["x", "place"])
    found = in_precision(graph, precision, {"x": x.numpy(), "place": place.numpy()})["y"]
    expected = module(x, place).detach().numpy()
    assert np.linalg.norm(found - expected) < bound * np.linalg.norm(expected)
    assert "MatMul" not in {n.op_type for n in exact_nodes(typed(tmp_path / "a.low.onnx").graph)}


def test_the_layers_around_an_embedding_stay_low(tmp_path: Path) -> None:
    body = """(float[B, 4] x, int64[B, 1] t) => (float[B, 4] y) {
        f = Cast<to = 1>(t) a = Mul(f, freq) s = Sin(a) h = MatMul(x, w) r = Relu(h) e = MatMul(s, w) z = Add(r, e)
        y = MatMul(z, w)
    }"""
    source = written(tmp_path / "a.onnx", body, w=W, freq=W[0])
    report = to_precision(source, tmp_path / "b.onnx", FP16)
    assert report.kept == {"Cast": 1, "Mul": 1, "Sin": 1}
    assert kinds(tmp_path / "b.onnx")["MatMul"] == {"FLOAT16"}


def test_an_argument_that_a_product_makes_comes_in_fp32_and_the_network_before_it_stays_low(tmp_path: Path) -> None:
    """Two layers of a SIREN: each argument is in fp32, what the products read is not. A residual stream ends it."""
    body = """(float[B, 4] x) => (float[B, 4] y) {
        h = MatMul(x, w) g = MatMul(h, w) k = Mul(g, thirty) s = Sin(k) r = Add(h, s) q = Add(r, h) t = Cos(q)
        y = MatMul(t, w)
    }"""
    source = written(tmp_path / "a.onnx", body, w=W, thirty=np.array(30, np.float32))
    to_precision(source, tmp_path / "b.onnx", FP16)
    low = {v.name: str(v.dtype) for node in typed(tmp_path / "b.onnx").graph for v in node.outputs}
    assert {name: low[name] for name in "hgkrq"} == {
        "h": "FLOAT16", "g": "FLOAT", "k": "FLOAT", "r": "FLOAT16", "q": "FLOAT"
    }  # fmt: skip


INDEXED = """(float[B, 3, 8, 8] x, int64[N] i) => (float[B, 3, N, 8] y, float[B, 3, N, 8] z) {
    f = Cast<to = 1>(i) g = Mul(f, third) h = Floor(g) j = Cast<to = 7>(h)
    a = Mul(x, k) p = Gather<axis = 2>(a, j)
    w0 = Sub(g, h) w1 = Unsqueeze(w0, minus) y = Mul(p, w1) z = Relu(p)
}"""
"""Bilinear sampling: a position makes an index, and a weight."""
CONSTANTS = {
    "third": np.array(1 / 3, np.float32),
    "k": np.array([2.0, 3.0] * 4, np.float32),
    "minus": np.array([1], np.int64),
}


def test_a_position_that_makes_an_index_and_a_weight_is_exact_for_both(tmp_path: Path) -> None:
    source = written(tmp_path / "a.onnx", INDEXED, **CONSTANTS)
    model = typed(source)
    assert {v.name for v in positions(model.graph)} == {"f", "g", "h", "w0", "w1"}
    assert {node.outputs[0].name for node in stepwise_nodes(model.graph)} == {"f", "g", "h"}
    i = np.array([0, 3000, 4095], np.int64) % 24
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 8), np.float32)
    with OnnxRuntimeSession(source) as session:
        expected = session.infer({"x": x, "i": i})
    for precision, bound in ((FP16, 2e-3), (BF16, 2e-2)):
        found = in_precision(source, precision, {"x": x, "i": i})
        assert all(np.linalg.norm(found[n] - a) <= bound * np.linalg.norm(a) for n, a in expected.items())


SIZED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "Resize by constant scales": ("16, 16", "y = Resize(h, , scales)", {"scales": np.array([1, 1, 2, 2], np.float32)}),
    "Resize by computed scales": (
        "P, Q",
        """s = Shape(x) f = Cast<to = 1>(s) g = Mul(f, two) q = Div(g, f) y = Resize(h, , q)""",
        {"two": np.array([1, 1, 2, 2], np.float32)},
    ),
    "Resize to computed sizes": (
        "P, Q",
        """s = Shape(x) f = Cast<to = 1>(s) g = Mul(f, two) q = Floor(g) n = Cast<to = 7>(q) y = Resize(h, , , n)""",
        {"two": np.array([1, 1, 1.3, 1.6], np.float32)},
    ),
    "Expand and Tile": (
        "8, 8",
        "s = Shape(x) t = Tile(h, ones) y = Expand(t, s)",
        {"ones": np.array([1, 1, 1, 1], np.int64)},
    ),
    "Slice and Pad": (
        "6, 10",
        "c = Slice(h, zero, four, two) y = Pad(c, pads, value)",
        {
            "zero": np.array([0], np.int64),
            "four": np.array([4], np.int64),
            "two": np.array([2], np.int64),
            "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64),
            "value": np.array(1.0, np.float32),
        },
    ),
    "Range": (
        "8, 8",
        """s = Shape<start = 3>(x) q = Squeeze(s) f = Cast<to = 1>(q) r = Range(nought, f, one) m = Mul(h, r)
        y = Relu(m)""",
        {"nought": np.array(0, np.float32), "one": np.array(1, np.float32)},
    ),
}


@pytest.mark.parametrize("precision", [Precision.FP32, FP16])
@pytest.mark.parametrize("name", SIZED)
def test_sizes_have_no_noise_and_stay_as_they_are(name: str, precision: Precision, tmp_path: Path) -> None:
    """The noisy graph runs, its shape is that of the graph, and its numbers are near those of the graph."""
    shape, tail, constants = SIZED[name]
    body = f"(float[B, 3, 8, 8] x) => (float[B, 3, {shape}] y) {{ h = Conv(x, w) {tail} }}"
    weight = np.random.default_rng(1).standard_normal((3, 3, 1, 1)).astype(np.float32)
    source = written(tmp_path / "a.onnx", body, opset=20, w=weight, **constants)
    with OnnxRuntimeSession(source) as session:
        expected = session.infer({"x": PICTURE})["y"]
    found = in_precision(source, precision, {"x": PICTURE})["y"]
    assert found.shape == expected.shape
    assert np.linalg.norm(found - expected) <= 16 * precision.unit_roundoff * np.linalg.norm(expected)
    model = load_graph(source)
    add_noise(model, noise_sizes(model, precision, amplified=64 if precision is Precision.FP32 else 1))
    import onnx_ir as ir

    ir.save(model, tmp_path / "noisy.onnx")
    with OnnxRuntimeSession(tmp_path / "noisy.onnx") as session:
        noisy = session.infer({"x": PICTURE, "trtship.draw": np.array(1.3, np.float32)})["y"]
    assert noisy.shape == expected.shape
    assert 0 < np.linalg.norm(noisy - expected) <= 64 * max(precision.unit_roundoff, 2**-18) * np.linalg.norm(expected)


def test_ids_that_select_rows_of_a_table_carry_noise_on(tmp_path: Path) -> None:
    """The index is exact; what it selects is an activation like any other."""
    body = "(int64[B, 3] i) => (float[B, 3, 4] y) { e = Gather(table, i) y = MatMul(e, w) }"
    model = load_graph(written(tmp_path / "a.onnx", body, table=W, w=W))
    assert add_noise(model, noise_sizes(model, FP16)) > 0


def test_coordinates_that_a_product_makes_stay_in_fp32(tmp_path: Path) -> None:
    body = """(float[B, 3, 8, 8] x) => (float[B, 3, 8, 8] y) {
        o = Conv(x, w) t = Tanh(o) g = Transpose<perm = [0, 2, 3, 1]>(t) y = GridSample(x, g)
    }"""
    weight = np.random.default_rng(1).standard_normal((2, 3, 1, 1)).astype(np.float32)
    to_precision(written(tmp_path / "a.onnx", body, w=weight), tmp_path / "b.onnx", FP16)
    found = kinds(tmp_path / "b.onnx")
    assert all(found[op] == {"FLOAT"} for op in ("Tanh", "Transpose", "GridSample", "Conv"))


@pytest.mark.parametrize(("how", "precision"), [*((how, FP16) for how in UPSAMPLING), ("bicubic", BF16)])
def test_upsampling_is_right(how: str, precision: Precision, tmp_path: Path) -> None:
    module, x = upsampling(how), torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    graph = exported(module, (x,), tmp_path / "a.onnx", ["x"])
    found, expected = in_precision(graph, precision, {"x": x.numpy()})["y"], module(x).detach().numpy()
    assert np.linalg.norm(found - expected) < 8 * precision.unit_roundoff * np.linalg.norm(expected)
