from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from swins import SWINS

from graphs import ops, written
from trtship.graphs import load_graph
from trtship.passes.patch_embedding import PatchEmbedding
from trtship.passes.proof import Reference
from trtship.passes.rewrite import RewriteReport
from trtship.session.onnxruntime import OnnxRuntimeSession

PASS = PatchEmbedding()


def proved(source: Path, target: Path) -> RewriteReport:
    report = PASS.apply(source, target)
    verdict = Reference(source).verdict(target)
    assert verdict.same, verdict.why
    return report


@pytest.mark.parametrize("name", SWINS)
def test_every_swins_patches_become_a_product(name: str, swin: Callable[..., Path], tmp_path: Path) -> None:
    source = swin(name, simple=True)
    report = proved(source, tmp_path / "out.onnx")
    assert (report.matches, report.rewritten, report.near_misses) == (1, 1, ())
    assert (ops(source).count("Conv"), ops(tmp_path / "out.onnx").count("Conv")) == (1, 0)


def test_what_followed_the_convolution_needs_no_transposition(swin: Callable[..., Path], tmp_path: Path) -> None:
    for name in ("timm", "transformers"):
        PASS.apply(swin(name, simple=True), tmp_path / "out.onnx")
        model = load_graph(tmp_path / "out.onnx")
        first = [node.op_type for node in model.graph if node.metadata_props.get("trtship.pass")]
        assert first[:5] == ["Reshape", "Transpose", "Reshape", "MatMul", "Add"]
        assert "Transpose" not in first[5:]


def conv(path: Path, attributes: str, *, tail: str = "y = Relu(c)", size: str = "8, 12", **more: Any) -> Path:
    rng = np.random.default_rng(0)
    tensors = {"w": rng.standard_normal((6, 3, 2, 3)), "b": rng.standard_normal(6), **more}
    body = f"(float[B, 3, {size}] x) => (float[N, M, K, L] y) {{ c = Conv<{attributes}>(x, w, b) {tail} }}"
    return written(path, body, **{name: array.astype(np.float32) for name, array in tensors.items()})


def test_oblong_patches_and_a_result_that_is_read_as_it_is(tmp_path: Path) -> None:
    report = proved(conv(tmp_path / "a.onnx", "strides = [2, 3], kernel_shape = [2, 3]"), tmp_path / "b.onnx")
    assert report.rewritten == 1
    assert ops(tmp_path / "b.onnx")[-2:] == ["Transpose", "Relu"]


def test_a_result_that_is_the_graphs_output(tmp_path: Path) -> None:
    body = "(float[B, 3, 4, 4] x) => (float[N, 2, 2, 2] y) { y = Conv<strides = [2, 2]>(x, w) }"
    w = np.random.default_rng(0).standard_normal((2, 3, 2, 2)).astype(np.float32)
    assert proved(written(tmp_path / "a.onnx", body, w=w), tmp_path / "b.onnx").rewritten == 1


STRIDE = "strides = [2, 3], kernel_shape = [2, 3]"
NEAR_MISSES = {
    "it pads the picture": (STRIDE + ", pads = [0, 0, 0, 3]", {}),
    "it is dilated": (STRIDE + ", dilations = [2, 1]", {}),
    "is not made of patches of 2 x 3": (STRIDE, {"size": "8, 13"}),
    "it has groups": (STRIDE + ", group = 3", {"w": np.ones((6, 1, 2, 3))}),
    "the picture's size is not known": (STRIDE, {"size": "H, 12"}),
}


@pytest.mark.parametrize(("reason", "form"), NEAR_MISSES.items(), ids=list(NEAR_MISSES))
def test_near_misses(reason: str, form: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    source = conv(tmp_path / "a.onnx", form[0], **form[1])
    report = PASS.apply(source, tmp_path / "b.onnx")
    assert (report.matches, report.rewritten) == (1, 0)
    assert reason in report.near_misses[0].reason
    assert ops(tmp_path / "b.onnx") == ops(source)


def test_a_padded_picture_by_name_is_a_near_miss(tmp_path: Path) -> None:
    report = PASS.apply(conv(tmp_path / "a.onnx", STRIDE + ', auto_pad = "SAME_UPPER"'), tmp_path / "b.onnx")
    assert report.near_misses[0].reason == "it pads the picture"


@pytest.mark.parametrize(
    "attributes", ["strides = [1, 1]", "strides = [1, 3], kernel_shape = [2, 3]", "pads = [0, 0, 0, 0]"]
)
def test_overlapping_convolutions_are_none_of_its_business(attributes: str, tmp_path: Path) -> None:
    report = PASS.apply(conv(tmp_path / "a.onnx", attributes), tmp_path / "b.onnx")
    assert (report.matches, report.near_misses) == (0, ())


def test_convolutions_inside_a_network_are_none_of_its_business(
    exported: Callable[[str], Path], tmp_path: Path
) -> None:
    report = PASS.apply(exported("convnext"), tmp_path / "b.onnx")
    assert report.rewritten == 1
    assert ops(tmp_path / "b.onnx").count("Conv") == ops(exported("convnext")).count("Conv") - 1


TAILS = {
    "as it is": "y = Relu(c)",
    "channels last": "y = Transpose<perm = [0, 2, 3, 1]>(c)",
    "both": "t = Transpose<perm = [0, 2, 3, 1]>(c) r = Relu(t) u = Transpose<perm = [0, 3, 1, 2]>(r) y = Add(u, c)",
    "tokens": "s = Reshape(c, flat) t = Transpose<perm = [0, 2, 1]>(s) r = Relu(t) y = Unsqueeze(r, axis)",
    "tokens, unturned": "s = Reshape(c, flat) r = Relu(s) y = Unsqueeze(r, axis)",
}


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    patch=st.tuples(st.integers(1, 4), st.integers(2, 4)),
    grid=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    channels=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    batch=st.sampled_from(["B", "1", "3"]),
    tail=st.sampled_from(sorted(TAILS)),
    has_bias=st.booleans(),
)
def test_any_patches(
    patch: tuple[int, int],
    grid: tuple[int, int],
    channels: tuple[int, int],
    batch: str,
    tail: str,
    has_bias: bool,
) -> None:
    """On small integers, whose sums and products are exact in float32."""
    rng = np.random.default_rng(0)
    size = f"{channels[0]}, {patch[0] * grid[0]}, {patch[1] * grid[1]}"
    body = f"""(float[{batch}, {size}] x) => (float[N, M, K, L] y) {{
        c = Conv<strides = [{patch[0]}, {patch[1]}]>(x, w{", b" if has_bias else ""}) {TAILS[tail]} }}"""
    tensors: dict[str, Any] = {
        "w": rng.integers(-8, 9, (channels[1], channels[0], *patch)).astype(np.float32),
        "flat": np.array([0, channels[1], -1]),
        "axis": np.array([1]),
    }
    if has_bias:
        tensors["b"] = rng.integers(-8, 9, channels[1]).astype(np.float32)
    with tempfile.TemporaryDirectory() as name:
        source = written(Path(name) / "a.onnx", body, **tensors)
        assert PASS.apply(source, Path(name) / "b.onnx").rewritten == 1
        assert "Conv" not in ops(Path(name) / "b.onnx")
        with OnnxRuntimeSession(source) as one, OnnxRuntimeSession(Path(name) / "b.onnx") as two:
            shape = one.inputs[0].with_sizes({"B": 2})
            x = rng.integers(-8, 9, shape).astype(np.float32)
            assert np.array_equal(one.infer({"x": x})["y"], two.infer({"x": x})["y"])
