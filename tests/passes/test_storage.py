from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from graphs import model_of, written
from trtship.errors import GraphError, OutputError
from trtship.graphs import graph_files, load_graph, save_graph
from trtship.session.onnxruntime import OnnxRuntimeSession

BODY = "(float[B, 400] x) => (float[B, 400] y) { y = Mul(x, w) }"
W = np.arange(400, dtype=np.float32)


def run(path: Path) -> np.ndarray:
    with OnnxRuntimeSession(path) as session:
        result: np.ndarray = session.infer({"x": np.ones((2, 400), np.float32)})["y"]
    return result


def test_a_small_graph_is_one_file(tmp_path: Path) -> None:
    source = written(tmp_path / "a.onnx", BODY, w=W)
    files = save_graph(load_graph(source), tmp_path / "out" / "b.onnx")
    assert files == (tmp_path / "out" / "b.onnx",) == graph_files(files[0])
    assert np.array_equal(run(files[0]), np.stack([W, W]))


def test_a_large_graph_has_its_tensors_beside_it(tmp_path: Path) -> None:
    source = written(tmp_path / "a.onnx", BODY, w=W)
    files = save_graph(load_graph(source), tmp_path / "b.onnx", external_over=1599)
    assert files == (tmp_path / "b.onnx", tmp_path / "b.onnx.data") == graph_files(files[0])
    assert np.array_equal(run(files[0]), np.stack([W, W]))
    assert save_graph(load_graph(source), tmp_path / "c.onnx", external_over=1600) == (tmp_path / "c.onnx",)


def test_external_data_comes_in_when_it_fits(tmp_path: Path) -> None:
    source = written(tmp_path / "a.onnx", BODY, w=W)
    save_graph(load_graph(source), tmp_path / "b.onnx", external_over=0)
    model = load_graph(tmp_path / "b.onnx")
    save_graph(model, tmp_path / "c.onnx")
    assert graph_files(tmp_path / "c.onnx") == (tmp_path / "c.onnx",)
    (tmp_path / "b.onnx.data").unlink()
    assert np.array_equal(run(tmp_path / "c.onnx"), np.stack([W, W]))


def test_a_graph_with_external_data_can_be_written_over_itself(tmp_path: Path) -> None:
    path = written(tmp_path / "a.onnx", BODY, w=W)
    for _ in range(2):
        save_graph(load_graph(path), path, external_over=0)
    assert np.array_equal(run(path), np.stack([W, W]))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.onnx", "a.onnx.data"]


def test_missing_external_data_is_named(tmp_path: Path) -> None:
    source = written(tmp_path / "a.onnx", BODY, w=W)
    save_graph(load_graph(source), tmp_path / "b.onnx", external_over=0)
    (tmp_path / "b.onnx.data").unlink()
    with pytest.raises(GraphError, match=r"needs its data file b\.onnx\.data"):
        load_graph(tmp_path / "b.onnx")


@pytest.mark.parametrize("location", ["../secret", "/etc/hostname"])
def test_external_data_outside_the_folder_is_refused(tmp_path: Path, location: str) -> None:
    model = model_of(BODY, w=W)
    onnx.external_data_helper.set_external_data(model.graph.initializer[0], location)
    model.graph.initializer[0].ClearField("raw_data")
    model.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL
    (tmp_path / "evil.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(GraphError, match="keeps data outside its folder"):
        load_graph(tmp_path / "evil.onnx")


@pytest.mark.parametrize("content", [b"", b"just some text\n", b"\x00" * 64, b"\x08\x0a\x12\x00"])
def test_what_is_no_graph_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "notes.onnx"
    path.write_bytes(content)
    with pytest.raises(GraphError, match=r"notes\.onnx is no ONNX file"):
        load_graph(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="there is no ONNX file"):
        load_graph(tmp_path / "none.onnx")


def test_an_invalid_graph_is_not_written(tmp_path: Path) -> None:
    source = written(tmp_path / "a.onnx", BODY, w=W)
    save_graph(load_graph(source), tmp_path / "b.onnx")
    before = (tmp_path / "b.onnx").read_bytes()
    model = load_graph(source)
    model.graph[0].op_type = "Frobnicate"
    with pytest.raises(GraphError, match="Frobnicate"):
        save_graph(model, tmp_path / "b.onnx", external_over=0)
    assert (tmp_path / "b.onnx").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.onnx", "b.onnx"]


def test_a_target_below_a_file_is_refused(tmp_path: Path) -> None:
    source = written(tmp_path / "a.onnx", BODY, w=W)
    with pytest.raises(OutputError):
        save_graph(load_graph(source), source / "b.onnx")
