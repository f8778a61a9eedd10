from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from graphs import written
from trtship.errors import GraphError
from trtship.measure import worst
from trtship.passes import differences
from trtship.passes.compare import default_sizes, make_feeds
from trtship.spec import TensorSpec

DOUBLE = "(float[B, 4] x, float[B, L] m) => (float[B, 4] y, float[B, L] n) { y = Add(x, x) n = Identity(m) }"


def test_a_graph_does_not_differ_from_itself_at_any_size(tmp_path: Path) -> None:
    path = written(tmp_path / "a.onnx", DOUBLE)
    found = differences(path, path)
    assert worst([d.measure for d in found]) == 0
    assert {(d.case, d.measure.output, d.measure.sizes["B"], d.measure.sizes["L"]) for d in found} == {
        (case, output, n, n)
        for case, sizes in (("random", (1, 2, 3)), ("adversarial", (1,)))
        for output in ("y", "n")
        for n in sizes
    }


def test_a_graph_that_is_right_at_batch_one_alone_is_found_out(tmp_path: Path) -> None:
    right = written(tmp_path / "a.onnx", "(float[B, 4] x) => (float[B, 4] y) { y = Identity(x) }")
    body = "(float[B, 4] x) => (float[B, 4] y) { i = Constant<value_ints = [0]>() f = Gather(x, i) z = Sub(x, x) "
    wrong = written(tmp_path / "b.onnx", body + "y = Add(f, z) }")
    found = {(d.measure.sizes["B"], d.case): d.measure.rel_l2 for d in differences(right, wrong)}
    assert found[1, "random"] == 0
    assert all(found[n, "random"] is not None and found[n, "random"] > 0.1 for n in (2, 3))  # type: ignore[operator]


def test_what_only_large_values_show_is_found_by_the_adversarial_case(tmp_path: Path) -> None:
    right = written(tmp_path / "a.onnx", "(float[B, 4] x) => (float[B, 4] y) { y = Identity(x) }")
    wrong = written(
        tmp_path / "b.onnx", "(float[B, 4] x) => (float[B, 4] y) { y = Clip(x, low, high) }",
        low=np.float32(-20), high=np.float32(20),
    )  # fmt: skip
    found = differences(right, wrong)
    assert {d.case for d in found if d.measure.rel_l2} == {"adversarial"}


def test_a_nan_is_a_difference(tmp_path: Path) -> None:
    right = written(tmp_path / "a.onnx", "(float[B, 4] x) => (float[B, 4] y) { y = Identity(x) }")
    wrong = written(
        tmp_path / "b.onnx",
        "(float[B, 4] x) => (float[B, 4] y) { z = Sub(x, x) q = Div(z, z) y = Add(x, q) }",
    )
    assert worst([d.measure for d in differences(right, wrong)]) is None


def test_a_graph_that_fails_at_a_size_raises(tmp_path: Path) -> None:
    right = written(tmp_path / "a.onnx", "(float[B, 4] x) => (float[B, 4] y) { y = Identity(x) }")
    body = "(float[B, 4] x) => (float[B, 4] y) { s = Constant<value_ints = [1, 4]>() y = Reshape(x, s) }"
    with pytest.raises(GraphError, match=r"x \[2, 4\]"):
        differences(right, written(tmp_path / "b.onnx", body))


def test_a_static_graph_is_run_once_a_case(tmp_path: Path) -> None:
    path = written(tmp_path / "a.onnx", "(float[2, 4] x) => (float[2, 4] y) { y = Identity(x) }")
    assert len(differences(path, path)) == 2


def test_given_sizes_are_the_ones_used(tmp_path: Path) -> None:
    path = written(tmp_path / "a.onnx", DOUBLE)
    found = differences(path, path, sizes=[{"B": 2, "L": 7}])
    assert {tuple(d.measure.sizes.items()) for d in found} == {(("B", 2), ("L", 7))}


def test_feeds_are_seeded_and_of_the_specs_types() -> None:
    specs = [
        TensorSpec(name="x", shape=("B", 6)),
        TensorSpec(name="ids", shape=("B",), dtype="int64"),
        TensorSpec(name="mask", shape=(3,), dtype="bool"),
    ]
    one, two = (make_feeds(specs, {"B": 2}, case="adversarial", seed=7) for _ in range(2))
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert [str(array.dtype) for array in one.values()] == ["float32", "int64", "bool"]
    assert (one["x"][:, :3] == one["x"][0, 0]).all()
    assert len(np.unique(one["x"][:, 3:])) == 6
    assert set(one["ids"]) <= {0, 1}
    assert default_sizes(specs) == ({"B": 1}, {"B": 2}, {"B": 3})
