"""A file that is no sound ONNX graph is refused when it is read, by every reader, in the user's terms."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphs_hostile import EXTERNAL, HOSTILE, TENSORS, external, initializer, node, sound, with_nodes
from trtship.errors import GraphError, UserError
from trtship.graphs.storage import load_graph
from trtship.sources import SourceOptions, resolve


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "graph"
    place.mkdir()
    (place / "data.bin").write_bytes(np.ones(4, np.float32).tobytes())
    (tmp_path / "data.bin").write_bytes(bytes(16))
    (place / "link.bin").symlink_to(tmp_path / "data.bin")
    (place / "circle.bin").symlink_to("circle.bin")
    os.mkfifo(place / "pipe.bin")
    return place


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "a.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def read(path: Path) -> None:
    """As `deploy` and `export` do."""
    source = resolve(str(path))
    source.check(SourceOptions(source=str(path)))
    source.fingerprint(SourceOptions(source=str(path)))


@pytest.mark.parametrize("fault", HOSTILE)
def test_every_reader_refuses_it(folder: Path, fault: str) -> None:
    path = saved(HOSTILE[fault](), folder)
    for reader in (read, load_graph):
        with pytest.raises(GraphError) as caught:
            reader(path)
        assert str(path) in caught.value.what
        if fault in {**EXTERNAL, **TENSORS}:
            assert "tensor w" in caught.value.why or "data file" in caught.value.what
        assert "\x1b" not in str(caught.value)


def test_what_is_sound_is_read(folder: Path) -> None:
    unsorted = with_nodes(node("Relu", "a", "y"), node("Add", "x w", "a"))
    for model in (sound(), external(), external(offset="0", length="16"), initializer(dims=[2, 2]), unsorted):
        load_graph(saved(model, folder))
    assert [file.name for file in resolve_data(saved(external(), folder))] == ["data.bin"]


def resolve_data(path: Path) -> tuple[Path, ...]:
    source = resolve(str(path))
    loaded = source.load(SourceOptions(source=str(path)))
    return loaded.external_data  # type: ignore[union-attr]


def test_a_graph_without_inputs_is_refused(folder: Path) -> None:
    model = with_nodes(node("Relu", "w", "y"))
    model.graph.ClearField("input")
    model.graph.output[0].type.tensor_type.shape.ClearField("dim")
    model.graph.output[0].type.tensor_type.shape.dim.add(dim_value=4)
    with pytest.raises(GraphError, match="no inputs"):
        resolve_data(saved(model, folder))


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_damage_of_any_kind_is_an_error_of_the_users(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Bytes changed anywhere: a graph is read, or refused; nothing else is ever raised."""
    raw = bytearray(external().SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    folder = tmp_path_factory.getbasetemp() / "damaged"
    folder.mkdir(exist_ok=True)
    (folder / "data.bin").write_bytes(bytes(16))
    path = folder / "a.onnx"
    path.write_bytes(bytes(raw))
    for reader in (read, load_graph):
        with suppress(UserError):
            reader(path)
