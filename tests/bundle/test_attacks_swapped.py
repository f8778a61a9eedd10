"""A file of a bundle that is exchanged after it was hashed is never opened: what was hashed is what runs."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
from hostile import rehashed
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import trtship
from deployed import copy_of, edit_graph, reseal
from trtship.bundle import Bundle
from trtship.bundle.archive import pack_bundle
from trtship.bundle.debug import debug_bundle
from trtship.bundle.external_data import external_locations
from trtship.bundle.graph_files import copy_graph, graph_session, private_graphs
from trtship.bundle.kernels import bundle_kernels
from trtship.errors import BundleCorruptError, BundleError, GraphError
from trtship.scale.repository import export_triton

Deployed = Callable[[str, str], Path]
READ = {"graph": "model.onnx", "low": "fp16/model.onnx"}


@pytest.fixture
def folder(deployed: Deployed, tmp_path: Path) -> Path:
    return copy_of(deployed("colours", "fp16"), tmp_path)


def negated(path: Path, target: Path) -> Path:
    """A graph that takes the same inputs and gives other outputs."""
    target.write_bytes(path.read_bytes())

    def edit(model: Any) -> None:
        for node in model.graph.node:
            if node.op_type == "Relu":
                node.op_type = "Neg"

    edit_graph(target, edit)
    return target


def swap(folder: Path, name: str) -> None:
    os.replace(negated(folder / name, folder.parent / "swapped.onnx"), folder / name)


USES: dict[str, tuple[str, Callable[[Bundle, Path], object]]] = {
    "load": ("graph", lambda b, out: trtship.load(b, runtime="onnxruntime").close()),
    "verify": ("graph", lambda b, out: trtship.verify_bundle(b, record=False)),
    "verify in low precision": ("low", lambda b, out: trtship.verify_bundle(b, record=False)),
    "debug": ("graph", lambda b, out: debug_bundle(b)),
    "debug in low precision": ("low", lambda b, out: debug_bundle(b)),
    "kernels": ("low", lambda b, out: bundle_kernels(b)),
    "export-triton": ("low", lambda b, out: export_triton(b, out / "models", format="onnx")),
    "pack": ("graph", lambda b, out: pack_bundle(b, out / "a.zip")),
}


@pytest.mark.parametrize("use", USES)
def test_what_was_swapped_after_the_hashes_were_checked_is_refused(folder: Path, tmp_path: Path, use: str) -> None:

    which, act = USES[use]
    bundle = Bundle.open(folder)
    swap(folder, READ[which])
    with pytest.raises(BundleCorruptError, match="cannot be trusted"):
        act(bundle, tmp_path)
    assert not (tmp_path / "models").exists()
    assert not (tmp_path / "a.zip").exists()


def test_onnxruntime_gets_the_bytes_that_were_hashed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is swapped at the last moment there is: when onnxruntime is called."""
    real, given_to_it = onnxruntime.InferenceSession, []

    def session(source: Any, *arguments: Any, **options: Any) -> Any:
        swap(folder, "model.onnx")
        given_to_it.append(source)
        return real(source, *arguments, **options)

    digest = Bundle.open(folder).manifest.files["model.onnx"]
    red = np.zeros((2, 3, 8, 8), np.float32)
    red[:, 0] = 1
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    with trtship.load(folder, runtime="onnxruntime") as loaded:
        assert loaded(red).argmax(1).tolist() == [0, 0]
    assert [hashlib.sha256(data).hexdigest() for data in given_to_it] == [digest]


def test_a_thread_that_swaps_all_the_time_never_gets_its_graph_run(folder: Path) -> None:
    good = (folder / "model.onnx").read_bytes()
    bad = negated(folder / "model.onnx", folder.parent / "bad.onnx").read_bytes()
    stop = threading.Event()

    def race() -> None:
        while not stop.is_set():
            for data in (bad, good):
                (folder.parent / "next.onnx").write_bytes(data)
                os.replace(folder.parent / "next.onnx", folder / "model.onnx")

    red = np.zeros((2, 3, 8, 8), np.float32)
    red[:, 0] = 1
    thread = threading.Thread(target=race)
    thread.start()
    ran = 0
    try:
        for _ in range(40):
            try:
                with trtship.load(folder, runtime="onnxruntime") as loaded:
                    assert loaded(red).argmax(1).tolist() == [0, 0]
                    ran += 1
            except BundleCorruptError:
                continue
    finally:
        stop.set()
        thread.join()
    assert ran < 40


def test_a_fifo_in_the_place_of_a_file_is_refused_at_once(folder: Path) -> None:
    for name in ("model.onnx", "manifest.json", "reference/input-0.npy"):
        kept = (folder / name).read_bytes()
        (folder / name).unlink()
        os.mkfifo(folder / name)
        with pytest.raises(BundleError):
            Bundle.open(folder)
        (folder / name).unlink()
        (folder / name).write_bytes(kept)


def test_a_file_of_more_bytes_than_its_kind_has_is_refused_unread(folder: Path) -> None:
    os.truncate(folder / "evidence/build.log", 2**40)  # a terabyte that takes no space
    with pytest.raises(BundleError, match=r"build\.log is not read"):
        Bundle.open(folder)
    (folder / "evidence/build.log").unlink()
    os.truncate(folder / "manifest.json", 2**40)
    with pytest.raises(BundleError, match="too large"):
        Bundle.open(folder)


def outside(folder: Path, location: str, name: str = "model.onnx") -> bytes:
    """The graph with its weights in another file, and the manifest's hashes of that; returns what is in the file."""
    model, data = onnx.load(folder / name), b""
    for tensor in model.graph.initializer:
        if tensor.data_type not in (TensorProto.FLOAT, TensorProto.FLOAT16):
            continue  # shape inference reads axes and shapes
        offset, raw = len(data), numpy_helper.to_array(tensor).tobytes()
        data += raw
        tensor.ClearField("float_data")
        tensor.ClearField("int32_data")
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", str(offset)), ("length", str(len(raw)))):
            entry = tensor.external_data.add()
            entry.key, entry.value = key, value
    assert data
    (folder / name).write_bytes(model.SerializeToString())
    rehashed(folder)
    return data


@pytest.mark.parametrize(
    "location",
    ["weights.bin", "../weights.bin", "/etc/passwd", "./model.plan", "a/../model.plan", "", "*/_ORT_MEM_ADDR_/*"],
)
def test_weights_outside_the_manifest_are_refused_before_onnxruntime_sees_the_graph(
    folder: Path, tmp_path: Path, location: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "weights.bin").write_bytes(outside(folder, location))
    (folder / "fp16" / "weights.bin").write_bytes(outside(folder, location, "fp16/model.onnx"))

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("onnxruntime was called")

    monkeypatch.setattr(onnxruntime, "InferenceSession", never)
    for act in (
        lambda: trtship.load(folder, runtime="onnxruntime"),
        lambda: trtship.verify_bundle(folder, record=False),
        lambda: export_triton(Bundle.open(folder), tmp_path / "models", format="onnx"),
        lambda: debug_bundle(folder),
    ):
        with pytest.raises(BundleError, match=r"which the bundle's manifest does not list"):
            act()


def test_weights_in_a_file_of_the_manifest_are_hashed_copied_and_run(folder: Path) -> None:
    bundle = Bundle.open(folder)
    red = np.zeros((2, 3, 8, 8), np.float32)
    with graph_session(bundle, "model.onnx") as session:
        wanted = session.infer({"input": red + 1})
    (folder / "model.onnx.data").write_bytes(outside(folder, "model.onnx.data"))
    files = {**bundle.manifest.files, "model.onnx.data": "0" * 64}
    rehashed(folder, files=files)
    opened = Bundle.open(folder)
    with graph_session(opened, "model.onnx") as session:
        (folder / "model.onnx.data").write_bytes(b"\0" * 1000)  # what runs is the private copy
        assert np.array_equal(session.infer({"input": red + 1})["logits"], wanted["logits"])
    with pytest.raises(BundleCorruptError, match=r"model\.onnx\.data"):
        graph_session(opened, "model.onnx")


def test_private_copies_are_gone_afterwards(folder: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(folder)
    with private_graphs(bundle) as graph:
        path = graph("fp16/model.onnx")
        assert path.read_bytes() == (folder / "fp16/model.onnx").read_bytes()
        assert graph("fp16/model.onnx") == path
        assert path.parent.parent.stat().st_mode & 0o077 == 0
    assert not path.exists()
    assert copy_graph(bundle, "model.onnx", tmp_path).read_bytes() == (folder / "model.onnx").read_bytes()


@pytest.mark.parametrize("data", [b"this is text", b"\x0a", b"\x0a\xff\xff\xff\xff\x0f", b"\x00\x00", b"\x0b\x0c"])
def test_what_is_no_graph_fails_as_such(folder: Path, data: bytes) -> None:
    (folder / "model.onnx").write_bytes(data)
    rehashed(folder)
    with pytest.raises(GraphError, match=r"model\.onnx"):
        trtship.load(folder, runtime="onnxruntime")


def test_onnxruntimes_own_format_is_refused(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"\0\0\0\0ORTM" + bytes(100))
    rehashed(folder)
    with pytest.raises(GraphError, match="own format"):
        trtship.load(folder, runtime="onnxruntime")


NAMES = st.text("abc/.", min_size=1, max_size=6)


def tensor(location: str | None) -> TensorProto:
    made = numpy_helper.from_array(np.zeros(2, np.float32), "t")
    if location is not None:
        made.data_location = TensorProto.EXTERNAL
        for key, value in (("offset", "0"), ("location", location), ("length", "8")):
            entry = made.external_data.add()
            entry.key, entry.value = key, value
    return made


@st.composite
def graphs(draw: st.DrawFn, depth: int = 2) -> Any:
    """A graph with tensors in every place that has them."""
    tensors = st.one_of(st.none(), NAMES).map(tensor)
    nodes = []
    for _ in range(draw(st.integers(0, 2))):
        node = helper.make_node("Identity", ["x"], ["y"])
        kind = draw(st.sampled_from(["t", "tensors", "g", "graphs", "sparse", "f"] if depth else ["t", "tensors", "f"]))
        if kind == "t":
            node.attribute.append(helper.make_attribute("value", draw(tensors)))
        elif kind == "tensors":
            node.attribute.append(helper.make_attribute("value", draw(st.lists(tensors, min_size=1, max_size=2))))
        elif kind == "g":
            node.attribute.append(helper.make_attribute("body", draw(graphs(depth - 1))))
        elif kind == "graphs":
            node.attribute.append(helper.make_attribute("body", [draw(graphs(depth - 1))]))
        elif kind == "sparse":
            sparse = onnx.SparseTensorProto(values=draw(tensors), indices=draw(tensors), dims=[2])
            node.attribute.append(helper.make_attribute("value", sparse))
        else:
            node.attribute.append(helper.make_attribute("alpha", draw(st.floats(-1e6, 1e6))))
        nodes.append(node)
    graph = helper.make_graph(nodes, "g", [], [], initializer=draw(st.lists(tensors, max_size=2)))
    if draw(st.booleans()):
        graph.sparse_initializer.append(onnx.SparseTensorProto(values=draw(tensors), indices=draw(tensors), dims=[2]))
    return graph


def every_location(message: Any) -> list[str]:
    """What onnx itself finds, by protobuf's reflection."""
    found = []
    for field, value in message.ListFields():
        values = list(value) if field.is_repeated else [value]
        for one in values if field.message_type is not None else ():
            if one.DESCRIPTOR.name == "TensorProto":
                found += [entry.value for entry in one.external_data if entry.key == "location"]
            found += every_location(one)
    return found


@settings(max_examples=150, deadline=None)
@given(graphs(), st.one_of(st.none(), graphs(depth=1)), st.one_of(st.none(), graphs(depth=1)))
def test_the_locations_are_those_that_onnx_finds(graph: Any, function: Any, training: Any) -> None:
    model = helper.make_model(graph, producer_name="p")
    if function is not None:
        opset = helper.make_opsetid("", 20)
        model.functions.append(helper.make_function("d", "f", [], [], list(function.node), [opset]))
    if training is not None:
        model.training_info.append(onnx.TrainingInfoProto(initialization=training, algorithm=graph))
    assert set(external_locations(model.SerializeToString(), what="m")) == set(every_location(model))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(GraphError):
        assert all(isinstance(location, str) for location in external_locations(data, what="m"))


def test_a_graph_without_end_is_refused_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trtship.bundle.external_data.MAX_FIELDS", 1000)
    with pytest.raises(GraphError, match="more than 1000 fields"):
        external_locations(b"\x08\x01" * 2000, what="m")
    nested = b""
    for _ in range(2000):  # graphs in graphs: a loop would need Python's stack
        size = bytes([len(nested) & 0x7F | 0x80, len(nested) >> 7 & 0x7F | 0x80, len(nested) >> 14])
        nested = b"\x32" + size + nested
    with pytest.raises(GraphError, match=r"more than 1000 fields|not an ONNX"):
        external_locations(b"\x3a\x81\x80\x00" + b"\x0a" * 2000, what="m")


def test_a_manifest_that_is_another_than_was_opened_is_not_packed(folder: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(folder)
    reseal(folder, name="another")
    with pytest.raises(BundleCorruptError, match=r"manifest\.json cannot be trusted"):
        pack_bundle(bundle, tmp_path / "a.zip")
    assert not (tmp_path / "a.zip").exists()
    assert msgspec.json.decode((folder / "manifest.json").read_bytes())["name"] == "another"
