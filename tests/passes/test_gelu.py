from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from graphs import ops, written
from trtship.passes import to_precision
from trtship.passes.gelu import LIMIT, TANH, C
from trtship.session.onnxruntime import OnnxRuntimeSession
from trtship.spec import Precision

HEAD = "(float[B, 8] x) => (float[B, 8] y) "
FORMS = {
    "as one operator": "{ y = Gelu(x) }",
    "torch, opset 17": "{ a = Div(x, root) b = Erf(a) c = Add(b, one) d = Mul(x, c) y = Mul(d, half) }",
    "half first": "{ h = Mul(x, half) a = Mul(x, inverse) b = Erf(a) c = Add(one, b) y = Mul(h, c) }",
    "divided by two": "{ a = Mul(inverse, x) b = Erf(a) c = Add(b, one) d = Mul(c, x) y = Div(d, two) }",
    "half of the sum": "{ a = Div(x, root) b = Erf(a) c = Add(b, one) d = Mul(c, half) y = Mul(x, d) }",
}
NUMBERS = {
    "root": math.sqrt(2),
    "inverse": math.sqrt(0.5),
    "one": 1.0,
    "half": 0.5,
    "two": 2.0,
    "three": 3.0,
}


def low(path: Path, body: str, precision: Precision = Precision.FP16) -> tuple[Path, int]:
    used = {k: np.float32(v) for k, v in NUMBERS.items() if k in body}
    source = written(path / "a.onnx", HEAD + body, **used)
    report = to_precision(source, path / "low.onnx", precision)
    return path / "low.onnx", report.gelus


def every_fp16() -> np.ndarray:
    numbers = np.arange(2**16, dtype=np.uint16).view(np.float16)
    return numbers[np.isfinite(numbers)]


def exact(x: np.ndarray) -> np.ndarray:
    return np.array([0.5 * t * math.erfc(-t / math.sqrt(2)) for t in x.astype(np.float64)])


@pytest.mark.parametrize("body", FORMS.values(), ids=list(FORMS))
@pytest.mark.parametrize("precision", [Precision.FP16, Precision.BF16])
def test_every_form_is_found(body: str, precision: Precision, tmp_path: Path) -> None:
    path, count = low(tmp_path, body, precision)
    assert count == 1
    assert not {"Erf", "Gelu"} & set(ops(path))
    assert "Exp" in ops(path)


@pytest.mark.parametrize("body", FORMS.values(), ids=list(FORMS))
def test_every_fp16_number_comes_out_within_its_own_rounding(body: str, tmp_path: Path) -> None:
    path, _ = low(tmp_path, body)
    x = every_fp16()
    x = x[: x.size // 8 * 8]
    with OnnxRuntimeSession(path) as session:
        found = session.infer({"x": x.reshape(-1, 8).astype(np.float32)})["y"].reshape(-1).astype(np.float64)
    expected = exact(x)
    half_step = np.spacing(np.minimum(np.abs(expected), 65000).astype(np.float16)).astype(np.float64) / 2
    assert (np.abs(found - expected) <= half_step + 2.6e-5).all()


def test_the_formula_is_nearer_than_the_usual_form_in_fp16() -> None:
    """Below zero, where 1 + erf cancels: the usual form is off by up to 4.5e-4."""
    x = every_fp16()
    x = x[(x < 0) & (x > -20)]
    erf = np.array([math.erf(t / math.sqrt(2)) for t in x.astype(np.float64)]).astype(np.float16)
    usual = (x * np.float16(0.5)) * (erf + np.float16(1))
    u = np.minimum(np.square(x.astype(np.float32)), np.float32(LIMIT))
    p = np.float32(C[0]) + u * (np.float32(C[1]) + u * np.float32(C[2]))
    ours = (x.astype(np.float32) / (1 + np.exp(-x.astype(np.float32) * p))).astype(np.float16)
    wrong = [np.abs(one.astype(np.float64) - exact(x)).max() for one in (usual, ours)]
    assert wrong[1] < wrong[0] / 4


def test_the_tanh_approximation_stays_that_one(tmp_path: Path) -> None:
    path, count = low(tmp_path, '{ y = Gelu<approximate = "tanh">(x) }')
    assert count == 1
    x = np.linspace(-6, 6, 800).astype(np.float16)
    with OnnxRuntimeSession(path) as session:
        found = session.infer({"x": x.reshape(-1, 8).astype(np.float32)})["y"].reshape(-1)
    z = x.astype(np.float64)
    expected = 0.5 * z * (1 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))
    assert math.isclose(TANH[1] / TANH[0], 0.044715)
    np.testing.assert_allclose(found, expected, rtol=2**-11, atol=2**-24)


OTHERS = {
    "another scale": "{ a = Div(x, two) b = Erf(a) c = Add(b, one) d = Mul(x, c) y = Mul(d, half) }",
    "another sum": "{ a = Div(x, root) b = Erf(a) c = Add(b, two) d = Mul(x, c) y = Mul(d, half) }",
    "another half": "{ a = Div(x, root) b = Erf(a) c = Add(b, one) d = Mul(x, c) y = Mul(d, three) }",
    "another factor": "{ z = Neg(x) a = Div(x, root) b = Erf(a) c = Add(b, one) d = Mul(z, c) y = Mul(d, half) }",
    "the square": "{ a = Div(x, root) b = Erf(a) c = Add(b, one) d = Mul(x, c) e = Mul(d, x) y = Mul(e, half) }",
    "upside down": "{ a = Div(root, x) b = Erf(a) c = Add(b, one) d = Mul(x, c) y = Mul(d, half) }",
    "divided by the sum": "{ a = Div(x, root) b = Erf(a) c = Add(b, one) d = Div(x, c) y = Mul(d, half) }",
}


@pytest.mark.parametrize("body", OTHERS.values(), ids=list(OTHERS))
def test_what_is_no_gelu_stays(body: str, tmp_path: Path) -> None:
    path, count = low(tmp_path, body)
    assert count == 0
    assert "Erf" in ops(path)


def test_fp32_graphs_keep_their_gelus(tmp_path: Path) -> None:
    path, count = low(tmp_path, "{ y = Gelu(x) }", Precision.FP32)
    assert count == 0
    assert ops(path) == ["Gelu"]
