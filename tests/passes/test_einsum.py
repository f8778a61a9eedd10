"""Einsum equations that TensorRT takes: the same products in other letters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from graphs import written
from trtship.graphs import load_graph
from trtship.passes import to_precision
from trtship.passes.einsum import in_small_letters
from trtship.spec import Precision


@pytest.mark.parametrize(
    "equation", ["B I D, B J D -> B I J", "bid,bjd->bij", "a A , A b -> a b", "...D,DE", "bA,Aa", "zY,Yx"]
)
def test_an_equation_in_small_letters_is_the_same_product(equation: str) -> None:
    found = in_small_letters(equation)
    rng = np.random.default_rng(0)
    left, right = rng.standard_normal((3, 3)), rng.standard_normal((3, 3))
    if equation.count(",") and len(equation.replace(" ", "").split(",")[0]) == 3 and "." not in equation:
        left, right = rng.standard_normal((2, 3, 4)), rng.standard_normal((2, 5, 4))
    np.testing.assert_allclose(np.einsum(found, left, right), np.einsum(equation.replace(" ", ""), left, right))
    assert not any(letter.isupper() or letter == " " for letter in found)


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16])
def test_the_typed_graph_has_no_capitals(precision: Precision, tmp_path: Path) -> None:
    body = """(float[B, 3, 4] x, float[B, 5, 4] z) => (float[B, 3, 5] y) {
        y = Einsum<equation = "B I D, B J D -> B I J">(x, z)
    }"""
    to_precision(written(tmp_path / "a.onnx", body), tmp_path / "b.onnx", precision)
    (node,) = [node for node in load_graph(tmp_path / "b.onnx").graph if node.op_type == "Einsum"]
    assert node.attributes["equation"].as_string() == in_small_letters("B I D, B J D -> B I J")
