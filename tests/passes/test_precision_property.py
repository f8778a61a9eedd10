"""Graphs put together at random from the pieces of real networks.

The rounding bound takes a network's gain for 1: a relative change of x moves the outputs by x. For these narrow ones
that need not be so, and their gain is measured.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graphs import written
from trtship.graphs import load_graph, rounding_bound
from trtship.passes import emulate_low, to_precision
from trtship.session.onnxruntime import OnnxRuntimeSession
from trtship.spec import Precision

WIDTH = 8
CHANGE = 1e-3

# Each piece maps {x} [B, 8] to {y} [B, 8]; `w0` ... are weights, `s` and `b` a norm's scale and shift.
PIECES = {
    "product": "{y} = MatMul({x}, {w})",
    "bias": "{y} = Add({x}, b)",
    "gate": "{y}a = Sigmoid({x}) {y} = Mul({x}, {y}a)",
    "gelu": "{y}a = MatMul({x}, {w}) {y}b = Gelu({y}a) {y} = MatMul({y}b, {w})",
    "relu": "{y}a = Relu({x}) {y} = Add({y}a, b)",
    "norm": "{y} = LayerNormalization({x}, s, b)",
    "norm written out": (
        "{y}a = ReduceMean({x}, axes) {y}b = Sub({x}, {y}a) {y}c = Mul({y}b, {y}b) {y}d = ReduceMean({y}c, axes) "
        "{y}e = Add({y}d, eps) {y}f = Sqrt({y}e) {y}g = Div({y}b, {y}f) {y}h = Mul({y}g, s) {y} = Add({y}h, b)"
    ),
    "normalize": "{y}a = ReduceL2({x}, axes) {y}b = Clip({y}a, eps) {y} = Div({x}, {y}b)",
    "attention": (
        "{y}a = MatMul({x}, {w}) {y}b = Add({y}a, mask) {y}c = Softmax({y}b) {y}d = MatMul({y}c, {w}) "
        "{y} = Add({x}, {y}d)"
    ),
    "moves": "{y}a = Transpose({x}) {y} = Transpose({y}a)",
    "residual": "{y} = Add({x}, {earlier})",
}


@st.composite
def bodies(draw: st.DrawFn) -> str:
    names, lines = ["x"], []
    for index, piece in enumerate(draw(st.lists(st.sampled_from(sorted(PIECES)), min_size=1, max_size=6))):
        earlier, weight = draw(st.sampled_from(names)), draw(st.sampled_from(["w0", "w1", "w2"]))
        lines.append(PIECES[piece].format(x=names[-1], y=f"v{index}", w=weight, earlier=earlier))
        names.append(f"v{index}")
    return f"(float[B, {WIDTH}] x) => (float[B, {WIDTH}] y) {{ {' '.join(lines)} y = Identity({names[-1]}) }}"


def constants() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    weights = {f"w{i}": rng.standard_normal((WIDTH, WIDTH)).astype(np.float32) * WIDTH**-0.5 for i in range(3)}
    mask = np.zeros((1, WIDTH), np.float32)
    mask[0, 5:] = -1e9
    return {
        **weights,
        "s": (1 + 0.2 * rng.standard_normal(WIDTH)).astype(np.float32),
        "b": (0.2 * rng.standard_normal(WIDTH)).astype(np.float32),
        "eps": np.float32(1e-6),
        "axes": np.array([-1]),
        "mask": mask,
    }


def gain_of(body: str, x: np.ndarray, expected: np.ndarray, folder: Path) -> float:
    """How much further than themselves small relative changes of the input and weights move the output; at least 1."""
    gains = [1.0]
    for seed in range(4):
        rng = np.random.default_rng(seed)
        tensors = constants()
        for name in ("w0", "w1", "w2", "b"):
            tensors[name] = tensors[name] * (1 + CHANGE * rng.standard_normal(tensors[name].shape)).astype(np.float32)
        with OnnxRuntimeSession(written(folder / "changed.onnx", body, **tensors), threads=1) as session:
            changed = session.infer({"x": x * (1 + CHANGE * rng.standard_normal(x.shape)).astype(np.float32)})["y"]
        gains.append(relative(expected, changed) / CHANGE)
    return max(gains)


def relative(expected: np.ndarray, found: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(body=bodies(), precision=st.sampled_from([Precision.FP16, Precision.BF16]), batch=st.integers(1, 5))
def test_any_such_graph_stays_valid_keeps_its_interface_and_its_outputs(
    body: str, precision: Precision, batch: int
) -> None:
    x = np.random.default_rng(batch).standard_normal((batch, WIDTH)).astype(np.float32)
    with tempfile.TemporaryDirectory() as name:
        source, typed, emulated = (Path(name) / f"{stem}.onnx" for stem in "abc")
        written(source, body, **constants())
        report = to_precision(source, typed, precision)
        onnx.checker.check_model(str(typed), full_check=True)
        emulate_low(typed, emulated)
        with OnnxRuntimeSession(source, threads=1) as one:
            expected, interface = one.infer({"x": x})["y"], (one.inputs, one.outputs)
        with OnnxRuntimeSession(emulated, threads=1) as two:
            found = two.infer({"x": x})["y"]
            assert (two.inputs, two.outputs) == interface
        bound = rounding_bound(load_graph(typed), precision).bound
        gain = gain_of(body, x, expected, Path(name))
    assert report.low > 0
    assert relative(expected, found) <= bound * gain
