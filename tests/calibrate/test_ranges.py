"""The ranges of tensors, by each of onnxruntime's calibrators."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphs import written
from trtship.calibrate import METHODS, Calibration, Method, calibrate, feeds_of_arrays, parse_method
from trtship.errors import GraphError, SpecError
from trtship.spec import TensorSpec, from_json, to_json

INPUTS = (TensorSpec(name="x", shape=("B", 4)),)


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    body = "(float[B, 4] x) => (float[B, 4] y) { a = Mul(x, w) b = Neg(a) y = Relu(b) }"
    return written(tmp_path / "g.onnx", body, w=np.array([1, 2, 3, 4], np.float32))


def rows(count: int = 400, *, outlier: float | None = None) -> Any:
    values = np.random.default_rng(0).standard_normal((count, 4)).astype(np.float32)
    if outlier is not None:
        values[7, 0] = outlier
    return feeds_of_arrays({"x": values}, INPUTS, source="rows", most=count), values


def test_min_max_is_the_whole_range_over_all_batches(graph: Path) -> None:
    feeds, x = rows()
    found = calibrate(graph, ["a", "y"], feeds, method="min-max")
    a = x * np.array([1, 2, 3, 4], np.float32)
    assert found.tensors["a"].low == a.min()
    assert found.tensors["a"].high == a.max()
    assert found.ranges == {"a": float(np.abs(a).max()), "y": float(np.maximum(-a, 0).max())}
    assert found.pictures == 400


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_each_tensor_asked_for_and_no_other(graph: Path, method: Method) -> None:
    feeds, x = rows()
    found = calibrate(graph, ["a"], feeds, method=method)
    assert set(found.tensors) == {"a"}
    assert 0 < found.ranges["a"] <= np.abs(x * np.array([1, 2, 3, 4])).max() * (1 + 1e-6)
    assert from_json(to_json(found), Calibration, what="it") == found


@pytest.mark.parametrize(("method", "cuts"), [("min-max", False), ("entropy", True)])
def test_an_outlier_is_cut_off_by_entropy_and_not_by_min_max(graph: Path, method: Method, cuts: bool) -> None:
    feeds, _ = rows(outlier=100.0)
    assert (calibrate(graph, ["a"], feeds, method=method).ranges["a"] < 50) == cuts


def test_percentile_cuts_one_in_a_hundred_thousand(graph: Path) -> None:
    values = np.random.default_rng(1).uniform(-1, 1, (100_000, 4)).astype(np.float32)
    values[50_000, 0] = 100.0  # of 400,000
    feeds = feeds_of_arrays({"x": values}, INPUTS, source="rows", most=len(values))
    whole = dataclasses.replace(feeds, batch=len(values))
    assert calibrate(graph, ["x"], whole, method="percentile").ranges["x"] < 50
    assert calibrate(graph, ["x"], whole, method="min-max").ranges["x"] == 100


def test_the_root_mean_square_is_that_of_the_first_batches(graph: Path) -> None:
    feeds, x = rows(count=8)
    found = calibrate(graph, ["x"], feeds, method="min-max").tensors["x"].rms
    assert found == pytest.approx(float(np.sqrt(np.mean(np.square(x, dtype=np.float64)))), rel=1e-6)


def test_nothing_is_printed(graph: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for method in METHODS:
        calibrate(graph, ["a"], rows(count=8)[0], method=method)
    assert capsys.readouterr() == ("", "")


def test_an_unknown_tensor_and_an_unknown_method_are_refused(graph: Path) -> None:
    with pytest.raises(SpecError, match="no tensor 'nothing'"):
        calibrate(graph, ["nothing"], rows()[0])
    with pytest.raises(SpecError, match="mean"):
        parse_method("mean")


def test_a_tensor_that_is_not_finite_is_an_error(graph: Path) -> None:
    with pytest.raises(GraphError, match="not finite"):
        calibrate(graph, ["a"], rows(outlier=np.inf)[0], method="min-max")


def test_pictures_that_the_graph_does_not_take_are_an_error(graph: Path) -> None:
    feeds = feeds_of_arrays({"x": np.zeros((2, 5), np.float32)}, INPUTS, source="rows")
    with pytest.raises(GraphError, match="failed while it was calibrated"):
        calibrate(graph, ["a"], feeds)


def test_no_tensors_need_no_pictures(graph: Path) -> None:
    assert calibrate(graph, [], rows()[0]).tensors == {}
