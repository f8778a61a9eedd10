"""One graph that stands for every mixture: switched on it is the low precision's, switched off the fp32 graph."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphs import model_of, pictures, written
from trtship.errors import SpecError
from trtship.measure import measure
from trtship.passes import emulate_low, to_precision
from trtship.passes.quantize import to_quantized
from trtship.passes.quantize_places import Scope, tensors_to_calibrate
from trtship.passes.switches import SWITCHES, switchable
from trtship.session.onnxruntime import OnnxRuntimeSession
from trtship.spec import Precision

W = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)
BODY = (
    "(float[B, 4] x) => (float[B, 4] y) { a = MatMul(x, w) b = Mul(a, big) r = Relu(b) c = Mul(r, small) "
    "y = MatMul(c, w) }"
)


def run(path: Path, x: np.ndarray, on: Collection[int] = (), count: int = 0) -> Any:
    """As it is written: onnxruntime 1.32 makes something else of fp8's Q and DQ when it may fuse."""
    with OnnxRuntimeSession(path, optimize=False) as session:
        feeds = {session.inputs[0].name: x}
        if count:
            feeds[SWITCHES] = np.array([index in on for index in range(count)])
        return next(iter(session.infer(feeds).values()))


def error(expected: Any, found: Any) -> float:
    return measure(expected, found, output="y", sizes={}).rel_l2 or 0.0


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.BF16])
def test_all_off_is_the_fp32_graph_and_all_on_the_emulated_one(
    exported: Callable[[str], Path], tmp_path: Path, precision: Precision
) -> None:
    source = exported("swin")
    names = switchable(source, tmp_path / "s.onnx", precision)
    to_precision(source, tmp_path / "low.onnx", precision)
    emulate_low(tmp_path / "low.onnx", tmp_path / "emulated.onnx")
    x = pictures("swin", 2).numpy()
    exact, low = run(source, x), run(tmp_path / "emulated.onnx", x)
    off = run(tmp_path / "s.onnx", x, (), len(names))
    on = run(tmp_path / "s.onnx", x, range(len(names)), len(names))
    assert error(exact, off) < 2**-18
    rounding = error(exact, low)
    assert 2**-14 < rounding < 0.1
    assert 0.5 * rounding < error(exact, on) < 2 * rounding


def test_the_switch_of_the_node_that_overflows_is_the_only_one_to_overflow(tmp_path: Path) -> None:
    source = written(tmp_path / "a.onnx", BODY, w=np.abs(W), big=np.float32(6e4), small=np.float32(1e-3))
    names = switchable(source, tmp_path / "s.onnx", Precision.FP16)
    operators = {node.name or node.output[0]: node.op_type for node in model_of(BODY, w=W).graph.node}
    x = np.full((2, 4), 3.0, np.float32)
    finite = {
        name: bool(np.isfinite(run(tmp_path / "s.onnx", x, {i}, len(names))).all()) for i, name in enumerate(names)
    }
    assert {operators[name] for name, fine in finite.items() if not fine} == {"Mul", "Relu"}
    assert finite[names[0]]
    assert finite[names[-1]]


@pytest.mark.parametrize("scope", ["all", "weights"])
@pytest.mark.parametrize("precision", [Precision.INT8, Precision.FP8])
def test_quantized_products_are_switched_one_by_one(tmp_path: Path, precision: Precision, scope: Scope) -> None:
    body = (
        "(float[B, 4] x) => (float[B, 4] y) { a = MatMul(x, w0) b = MatMul(a, w1) c = Relu(b) d = MatMul(c, w2) "
        "y = MatMul(d, w3) }"
    )
    rng = np.random.default_rng(1)
    weights = {f"w{i}": rng.standard_normal((4, 4)).astype(np.float32) for i in range(4)}
    source = written(tmp_path / "a.onnx", body, **weights)
    ranges = dict.fromkeys(tensors_to_calibrate(source), 8.0)
    names = switchable(source, tmp_path / "s.onnx", precision, ranges=ranges, scope=scope)
    report = to_quantized(source, tmp_path / "q.onnx", precision, ranges, scope=scope)
    assert len(names) == 2
    assert names == report.quantized
    x = rng.standard_normal((3, 4)).astype(np.float32)
    exact = run(source, x)
    assert error(exact, run(tmp_path / "s.onnx", x, (), len(names))) < 1e-6
    np.testing.assert_allclose(
        run(tmp_path / "s.onnx", x, range(len(names)), len(names)), run(tmp_path / "q.onnx", x), rtol=0, atol=1e-5
    )
    for index in range(len(names)):
        to_quantized(
            source, tmp_path / f"{index}.onnx", precision, ranges, scope=scope, exclude=set(names) - {names[index]}
        )
        np.testing.assert_allclose(
            run(tmp_path / "s.onnx", x, {index}, len(names)), run(tmp_path / f"{index}.onnx", x), rtol=0, atol=1e-5
        )


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.TF32])
def test_fp32_has_nothing_to_switch(tmp_path: Path, precision: Precision) -> None:
    source = written(tmp_path / "a.onnx", BODY, w=W, big=np.float32(2), small=np.float32(1))
    with pytest.raises(SpecError, match="no nodes to switch"):
        switchable(source, tmp_path / "s.onnx", precision)
