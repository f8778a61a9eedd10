from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from swins import SWINS, make

from graphs import written
from trtship.graphs import load_graph
from trtship.passes.batches import Batches
from trtship.passes.known import Known
from trtship.session.onnxruntime import OnnxRuntimeSession


@pytest.mark.parametrize("name", SWINS)
def test_every_shape_in_an_exported_graph_is_what_onnxruntime_computes(
    name: str, swin: Callable[..., Path], tmp_path: Path
) -> None:
    model = load_graph(swin(name))
    known = Known(model, {"B": 3})
    names = {node.outputs[0].name: node.outputs[0] for node in model.graph if node.op_type == "Reshape"}
    proto = onnx.load(swin(name))
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.helper.make_empty_tensor_value_info(key) for key in names)
    size = make(name)[1]
    import onnxruntime as ort

    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(list(names), {"input": np.zeros((3, 3, size, size), np.float32)})
    assert len(found) > 10
    assert {key: known.shape(value) for key, value in names.items()} == {
        key: array.shape for key, array in zip(names, found, strict=True)
    }


BODY = """(float[B, 4, H] x) => (float[B, 4, H] y) {
    s = Shape<start = 0, end = 1>(x) n = Mul(s, two) e = Expand(w, n) r = ReduceSum(x) c = Add(e, r)
    y = Identity(x) }"""


def test_data_is_known_where_it_depends_on_shapes_alone(tmp_path: Path) -> None:
    path = written(tmp_path / "a.onnx", BODY, two=np.array([2]), w=np.float32(7))
    model = load_graph(path)
    known = Known(model, {"B": 3})
    values = {value.name: value for node in model.graph for value in node.outputs}
    assert known.data(values["n"]).tolist() == [6]
    assert known.data(values["e"]).tolist() == [7] * 6
    assert known.data(values["c"]) is None
    assert (known.shape(values["e"]), known.shape(values["y"])) == ((6,), None)
    assert known.data(model.graph.inputs[0]) is None


def test_a_batch_shows_in_what_changes_with_it(tmp_path: Path) -> None:
    body = """(float[B, 4] x) => (float[M, 2] y) { y = Reshape(x, pairs) z = Reshape(x, turned) u = Reshape(x, odd) }"""
    shapes = {"pairs": np.array([-1, 2]), "turned": np.array([4, -1]), "odd": np.array([-1, 4])}
    model = load_graph(written(tmp_path / "a.onnx", body, **shapes))
    batches = Batches(model)
    values = {value.name: value for node in model.graph for value in node.outputs}
    assert (batches.letter, batches.sizes, batches.leading(2)) == ("B", (2, 3), -1)
    assert batches.per_image(values["y"]) == (2, 2)
    assert batches.per_image(values["z"]) is None
    assert batches.per_image(values["u"]) == (1, 4)


def test_a_fixed_batch_is_one_size(tmp_path: Path) -> None:
    body = "(float[6, 4] x) => (float[12, 2] y) { y = Reshape(x, pairs) }"
    batches = Batches(load_graph(written(tmp_path / "a.onnx", body, pairs=np.array([-1, 2]))))
    assert (batches.letter, batches.sizes, batches.leading(2)) == (None, (6,), 12)


def test_what_is_worked_out_is_what_runs(swin: Callable[..., Path]) -> None:
    with OnnxRuntimeSession(swin("own")) as session:
        assert session.outputs[0].shape == ("B", 5)
    model = load_graph(swin("own"))
    assert Known(model, {"B": 4}).shape(model.graph.outputs[0]) == (4, 5)


@pytest.mark.parametrize(("start", "known"), [("x", False), ("large", True)])
def test_a_graph_deeper_than_pythons_stack_is_read(tmp_path: Path, start: str, known: bool) -> None:
    lines = [f"t{n + 1} = Neg(t{n})" for n in range(3000)]
    first = ["n = Constant<value_ints = [5000]>()", "large = ConstantOfShape(n)", f"t0 = Identity({start})"]
    body = "\n".join([*first, *lines, "y = Identity(t3000)"])
    model = load_graph(written(tmp_path / "m.onnx", f"(float[5000] x) => (float[5000] y) {{{body}}}"))
    found = Known(model, {}).data(model.graph.outputs[0])
    assert (found is not None) == known
    assert found is None or (found == np.zeros(5000)).all()
