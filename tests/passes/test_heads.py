"""Which products are the head, which stays in fp32, and which are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import ShapeInferencePass

from graphs import written
from trtship.graphs import load_graph
from trtship.passes import to_precision
from trtship.passes.heads import heads
from trtship.passes.quantize_places import name_of
from trtship.spec import Precision

W = np.linspace(-1, 1, 16, dtype=np.float32).reshape(4, 4)
POOLED = "axes = Constant<value_ints = [1]>() m = ReduceMean<keepdims = 0>(x, axes)"
TOKENS = "(float[B, 7, 4] x) => (float[B, 4] y)"


def found(folder: Path, body: str) -> set[str]:
    model = load_graph(written(folder / "a.onnx", body, w=W, v=W))
    return {node.outputs[0].name or "" for node in heads(ShapeInferencePass()(model).model)}


@pytest.mark.parametrize(
    ("body", "names"),
    [
        (f"{TOKENS} {{ {POOLED} y = MatMul(m, w) }}", {"y"}),
        (f"{TOKENS} {{ {POOLED} a = MatMul(m, w) b = Relu(a) y = Softmax(b) }}", {"a"}),
        (f"{TOKENS} {{ zero = Constant<value_int = 0>() m = Gather<axis = 1>(x, zero) y = Gemm(m, w) }}", {"y"}),
        (
            "(float[B, 4, 5, 5] x) => (float[B, 4] y) { p = GlobalAveragePool(x) f = Flatten(p) y = Gemm(f, w) }",
            {"y"},
        ),
        (
            "(float[B, 4, 1, 1] x) => (float[B, 4] y) "
            "{ s = Constant<value_ints = [-1, 4]>() f = Reshape(x, s) y = Gemm(f, w) }",
            {"y"},
        ),
        (  # two classifiers of the same rows
            f"(float[B, 7, 4] x) => (float[B, 4] y, float[B, 4] z) {{ {POOLED} y = MatMul(m, w) z = MatMul(m, v) }}",
            {"y", "z"},
        ),
    ],
)
def test_the_products_behind_the_pooling_are_heads(body: str, names: set[str], tmp_path: Path) -> None:
    assert found(tmp_path, body) == names


@pytest.mark.parametrize(
    "body",
    [
        "(float[B, 4] x) => (float[B, 4] y) { y = MatMul(x, w) }",  # nothing was pooled
        f"{TOKENS.replace('[B, 4] y', '[B, 7, 4] y')} {{ y = MatMul(x, w) }}",  # of every token
        f"(float[B, 7, 4] x, float[4, 4] u) => (float[B, 4] y) {{ {POOLED} y = MatMul(m, u) }}",  # no weights
        "(float[B, 7, 4] x) => (float[R, 4] y) "  # a row of each token
        "{ s = Constant<value_ints = [-1, 4]>() f = Reshape(x, s) y = Gemm(f, w) }",
        f"{TOKENS.replace('[B, 4] y', '[B, 7, 4] y')} "  # a gate on the tokens: products are behind it
        f"{{ {POOLED} a = MatMul(m, w) g = Unsqueeze(a, axes) s = Mul(x, g) y = MatMul(s, v) }}",
    ],
)
def test_other_products_are_not(body: str, tmp_path: Path) -> None:
    assert found(tmp_path, body) == set()


@pytest.mark.parametrize(("classes", "names"), [(1024, {"y"}), (1025, set())])
def test_a_head_that_would_cost_time_to_read_is_as_the_rest(classes: int, names: set[str], tmp_path: Path) -> None:
    body = f"(float[B, 7, 4096] x) => (float[B, {classes}] y) {{ {POOLED} y = MatMul(m, w) }}"
    model = load_graph(written(tmp_path / "a.onnx", body, w=np.zeros((4096, classes), np.float32)))
    assert {node.outputs[0].name or "" for node in heads(ShapeInferencePass()(model).model)} == names


def test_of_two_products_behind_the_pooling_the_first_is_work_and_the_last_is_behind_a_product(tmp_path: Path) -> None:
    assert found(tmp_path, f"{TOKENS} {{ {POOLED} a = MatMul(m, w) b = Relu(a) y = MatMul(b, v) }}") == set()


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.BF16])
def test_a_head_is_in_fp32_with_what_is_added_to_it(precision: Precision, tmp_path: Path) -> None:
    body = f"{TOKENS} {{ t = MatMul(x, v) axes = Constant<value_ints = [1]>() m = ReduceMean<keepdims = 0>(t, axes) "
    source = written(tmp_path / "a.onnx", f"{body} a = MatMul(m, w) y = Add(a, b) }}", w=W, v=W, b=W[0])
    report = to_precision(source, tmp_path / "b.onnx", precision)
    assert report.kept == {"Add": 1, "MatMul": 1, "ReduceMean": 1}
    model = load_graph(tmp_path / "b.onnx")
    kinds = {name_of(node): node.inputs[1].dtype for node in model.graph if node.op_type == "MatMul"}
    low = ir.DataType[precision.graph_dtype.upper()]
    assert sorted(map(str, kinds.values())) == sorted(map(str, (low, ir.DataType.FLOAT)))
