"""Graphs that onnxruntime crashes on: opened in a process of their own first, and then in a way that works."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphs import model_of
from trtship.errors import GraphError
from trtship.session import trial
from trtship.session.onnx_types import is_low_precision
from trtship.session.onnxruntime import OnnxRuntimeSession
from trtship.session.trial import CULPRIT, Trials, Way, without_crash

ON_CPU = ("CPUExecutionProvider",)


def transposed_product() -> onnx.ModelProto:
    """What ViT's attention is in float16, and onnxruntime 1.32.0 ends with SIGSEGV on."""
    weight = numpy_helper.from_array(np.linspace(-1, 1, 16).reshape(4, 4).astype(np.float16), "w")
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        helper.make_node("MatMul", ["t", "w"], ["y"]),
    ]
    shapes = {"x": ["B", 4, 4], "y": [4, "B", 4]}
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, shape) for name, shape in shapes.items()]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def cast_inside() -> onnx.ModelProto:
    """The same with float32 at its ends."""
    model = transposed_product()
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT
    model.graph.node[0].input[0], model.graph.node[1].output[0] = "low", "high"
    model.graph.node.insert(0, helper.make_node("Cast", ["x"], ["low"], to=TensorProto.FLOAT16))
    model.graph.node.append(helper.make_node("Cast", ["high"], ["y"], to=TensorProto.FLOAT))
    return model


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRTSHIP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("make", [transposed_product, cast_inside])
@pytest.mark.parametrize("as_bytes", [True, False])
def test_a_graph_that_crashes_onnxruntime_runs_right(make, as_bytes: bool, tmp_path: Path) -> None:
    model = make()
    (tmp_path / "a.onnx").write_bytes(model.SerializeToString())
    x = np.arange(32, dtype=np.float16).reshape(2, 4, 4) / 32
    weight = numpy_helper.to_array(model.graph.initializer[0])
    given = x if make is transposed_product else x.astype(np.float32)
    with OnnxRuntimeSession(model.SerializeToString() if as_bytes else tmp_path / "a.onnx") as session:
        found = session.infer({"x": given})["y"]
        if onnxruntime.__version__ == "1.32.0":  # the crash is this version's
            assert CULPRIT in session.runtime
    wanted = x.transpose(1, 0, 2).astype(np.float64) @ weight.astype(np.float64)
    assert np.allclose(found.astype(np.float64), wanted, atol=4e-3)


def test_what_was_found_is_kept_and_asked_again_for_another_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []
    real = trial.start
    monkeypatch.setattr(trial, "start", lambda name, **more: (started.append(name), real(name, **more))[1])
    model = transposed_product()
    for _ in range(3):
        OnnxRuntimeSession(model.SerializeToString()).close()
    first = len(started)
    assert first >= 1
    model.graph.initializer[0].raw_data = bytes(32)
    OnnxRuntimeSession(model.SerializeToString()).close()
    assert len(started) == 2 * first


def test_graphs_of_full_precision_start_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "start", lambda *_, **__: pytest.fail("a process was started"))
    model = model_of("(float[B, 4] x) => (float[B, 4] y) { y = Neg(x) }")
    OnnxRuntimeSession(model.SerializeToString()).close()
    OnnxRuntimeSession(transposed_product().SerializeToString(), optimize=False).close()


def test_where_no_way_is_survived_it_is_an_error_that_says_how_it_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(self: Trials, way: Way) -> str:
        return "onnxruntime 1.32.0 was ended by SIGSEGV while it opened the graph"

    monkeypatch.setattr(Trials, "crash", crash)
    with pytest.raises(GraphError) as caught:
        OnnxRuntimeSession(transposed_product().SerializeToString())
    assert "was ended by SIGSEGV while it opened" in caught.value.why
    assert "another version of onnxruntime" in caught.value.do


def test_a_process_that_was_killed_is_tried_again(monkeypatch: pytest.MonkeyPatch, own_cache: Path) -> None:
    """It may have been for want of memory: the next time may go well."""
    real = trial.start

    def killed(name: str, **more: object) -> object:
        process = real(name, **more)
        process.kill()
        process.wait()
        return process

    trials = Trials(transposed_product().SerializeToString(), name="a graph", version="1")
    monkeypatch.setattr(trial, "start", killed)
    assert "SIGKILL" in trials.crash(Way(ON_CPU, "ORT_DISABLE_ALL"))
    monkeypatch.setattr(trial, "start", real)
    assert trials.crash(Way(ON_CPU, "ORT_DISABLE_ALL")) == ""


def test_an_error_that_onnxruntime_raises_is_no_crash() -> None:
    data = transposed_product().SerializeToString()
    assert Trials(data[:-20], name="half a graph", version="1").crash(Way(ON_CPU, "ORT_ENABLE_ALL")) == ""
    with pytest.raises(GraphError, match="cannot load"):
        OnnxRuntimeSession(data[:-20])


def test_after_each_way_that_may_crash_comes_the_same_without_the_culprit() -> None:
    ways = [Way(ON_CPU, "ORT_ENABLE_ALL"), Way(ON_CPU, "ORT_DISABLE_ALL")]
    assert without_crash(ways) == [ways[0], Way(ON_CPU, "ORT_ENABLE_ALL", (CULPRIT,)), ways[1]]


BODIES = {
    "(float[B, 4] x) => (float[B, 4] y) { y = Neg(x) }": False,
    "(float[B, 4] x) => (float[B, 4] y) { a = Cast<to = 10>(x) b = Neg(a) y = Cast<to = 1>(b) }": True,
    "(float[B, 4] x) => (float[B, 4] y) { a = Cast<to = 16>(x) y = Cast<to = 1>(a) }": True,
    "(float16[B, 4] x) => (float16[B, 4] y) { y = Neg(x) }": True,
    "(float[B, 4] x) => (float[B, 4] y) <float16 c = {15360}> { a = CastLike(x, c) y = Cast<to = 1>(a) }": True,
    "(float[B, 16, 2] x) => (float[B, 16, 2] y) { y = Softmax<axis = 2>(x) }": False,
    "(float[B, 32, 2] x) => (float[B, 32, 2] y) { y = LpNormalization<axis = 1, p = 2>(x) }": False,
    "(float[B, 16] x) => (float[B, 16] y) <int64[2] s = {10, 16}> { a = Reshape(x, s) y = Reshape(a, s) }": False,
}


@pytest.mark.parametrize("body", BODIES)
def test_what_a_graph_computes_in_is_read_from_its_bytes(body: str) -> None:
    assert is_low_precision(model_of(body).SerializeToString()) is BODIES[body]


def test_types_within_branches_and_functions_are_seen() -> None:
    branch = helper.make_graph(
        [helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16), helper.make_node("Cast", ["h"], ["z"], to=1)],
        "b", [], [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
    )  # fmt: skip
    model = model_of("(float[B, 4] x, bool c) => (float[B, 4] y) { y = Identity(x) }")
    del model.graph.node[:]
    model.graph.node.append(helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch))
    assert is_low_precision(model.SerializeToString())
    for data in (b"", b"\x08\x0a"):
        assert not is_low_precision(data)
    for data in (b"\xff" * 30, model.SerializeToString()[:-3]):
        assert is_low_precision(data)
