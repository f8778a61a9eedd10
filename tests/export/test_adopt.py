"""ONNX graphs that somebody brings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from graphs import model_of, written
from trtship.errors import ExportMismatchError, SpecError
from trtship.export import graph_from_source
from trtship.session.onnxruntime import OnnxRuntimeSession
from trtship.sources import SourceOptions, resolve
from trtship.spec import ShapeRange

W = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)


def adopt(path: Path, target: Path, **ranges: ShapeRange) -> Any:
    source = resolve(str(path))
    loaded = source.load(SourceOptions(source=str(path)))
    return graph_from_source(loaded, target, ranges=ranges)


def test_sizes_get_the_letters_of_the_specs(tmp_path: Path) -> None:
    body = "(float[batch, tokens, 4] x) => (float[batch, tokens, 3] y) { y = MatMul(x, w) }"
    report = adopt(
        written(tmp_path / "in.onnx", body, w=W), tmp_path / "out.onnx", t=ShapeRange(min=2, opt=5, max=6)
    )  # fmt: skip
    assert report.exporter == "none: the graph was given"
    assert {(m.sizes["B"], m.sizes["t"]) for m in report.checks} == {(2, 5), (1, 5), (3, 5), (2, 2), (2, 3), (2, 6)}
    with OnnxRuntimeSession(tmp_path / "out.onnx") as session:
        assert session.inputs[0].shape == ("B", "t", 4)


def test_a_frozen_batch_is_refused(tmp_path: Path) -> None:
    body = "(float[batch, 4] x) => (float[batch, 2] y) { s = Constant<value_ints = [2, 2]>() y = Reshape(x, s) }"
    with pytest.raises(ExportMismatchError, match="wrong at B=2"):
        adopt(written(tmp_path / "in.onnx", body), tmp_path / "out.onnx")


def test_rows_that_depend_on_their_neighbours_are_refused(tmp_path: Path) -> None:
    body = """(float[batch, 4] x) => (float[batch, 4] y) {
        axes = Constant<value_ints = [0]>()
        mean = ReduceMean(x, axes)
        y = Sub(x, mean)
    }"""
    with pytest.raises(ExportMismatchError, match="depend on their neighbours"):
        adopt(written(tmp_path / "in.onnx", body), tmp_path / "out.onnx")


def test_a_static_batch_is_taken_as_it_is(tmp_path: Path) -> None:
    body = "(float[2, 4] x) => (float[2, 3] y) { y = MatMul(x, w) }"
    report = adopt(written(tmp_path / "in.onnx", body, w=W), tmp_path / "out.onnx")
    assert (report.traced, report.checks) == ({}, ())


def test_a_static_batch_with_another_dynamic_size_has_no_rows_to_compare(tmp_path: Path) -> None:
    body = "(float[1, tokens, 4] x) => (float[1, tokens, 3] y) { y = MatMul(x, w) }"
    path = written(tmp_path / "in.onnx", body, w=W)
    report = adopt(path, tmp_path / "out.onnx", t=ShapeRange(min=2, opt=5, max=6))
    assert report.traced == {"t": 5}


def test_a_size_without_a_range_is_refused(tmp_path: Path) -> None:
    body = "(float[batch, tokens, 4] x) => (float[batch, tokens, 3] y) { y = MatMul(x, w) }"
    with pytest.raises(SpecError, match="dynamic size t"):
        adopt(written(tmp_path / "in.onnx", body, w=W), tmp_path / "out.onnx")


def test_weights_listed_among_the_inputs_are_no_inputs(tmp_path: Path) -> None:
    """As exporters wrote them up to IR version 3, and PyTorch's does with keep_initializers_as_inputs."""
    model = model_of("(float[batch, 4] x) => (float[batch, 3] y) { y = MatMul(x, w) }", w=W)
    model.graph.input.append(onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [4, 3]))
    onnx.save(model, tmp_path / "in.onnx")
    report = adopt(tmp_path / "in.onnx", tmp_path / "out.onnx")
    assert report.traced == {"B": 2}


@pytest.mark.parametrize("options", [{"opset": 18}, {"exporter": "dynamo"}])
def test_exporter_options_do_not_apply(options: dict[str, Any], tmp_path: Path) -> None:
    path = written(tmp_path / "in.onnx", "(float[b, 4] x) => (float[b, 3] y) { y = MatMul(x, w) }", w=W)
    loaded = resolve(str(path)).load(SourceOptions(source=str(path)))
    with pytest.raises(SpecError, match="do not apply to an ONNX file"):
        graph_from_source(loaded, tmp_path / "out.onnx", ranges={}, **options)
