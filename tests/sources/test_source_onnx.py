import subprocess
import sys

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from trtship.errors import GraphError
from trtship.sources import SourceOptions, resolve
from trtship.sources.graph_specs import specs_of_graph
from trtship.spec import TensorSpec


def add_model(shape=("batch", 3, "height", "height"), output=None, *, weight=None, dtype=TensorProto.FLOAT):
    weight = np.ones(1, np.float32) if weight is None else weight
    graph = helper.make_graph(
        [helper.make_node("Add", ["image", "w"], ["sum"])],
        "g",
        [helper.make_tensor_value_info("image", dtype, shape)],
        [helper.make_tensor_value_info("sum", dtype, shape if output is None else output)],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def load(path):
    options = SourceOptions(source=str(path))
    source = resolve(str(path))
    source.check(options)
    return source.load(options)


def test_a_graphs_inputs_and_outputs_have_one_letter_per_symbol(tmp_path):
    onnx.save(add_model(), tmp_path / "m.onnx")
    graph = load(tmp_path / "m.onnx")
    assert graph.inputs == (TensorSpec(name="image", shape=("B", 3, "h", "h")),)
    assert graph.outputs == (TensorSpec(name="sum", shape=("B", 3, "h", "h")),)
    assert (graph.path, graph.external_data, graph.opset, graph.notes) == (tmp_path / "m.onnx", (), 20, ())


@pytest.mark.parametrize(
    ("shape", "letters", "notes"),
    [
        ((None, 3), ("B", 3), 1),
        ((2, None), (2, "i"), 0),
        (("N", "B", "x"), ("B", "A", "C"), 0),
        (("B", "L"), ("B", "L"), 0),
        ((), (), 0),
    ],
)
def test_dimensions_without_a_usable_name_get_a_letter(shape, letters, notes):
    inputs, outputs, said = specs_of_graph(add_model(shape))
    assert inputs[0].shape == letters
    assert [d for d in outputs[0].shape if isinstance(d, int)] == [d for d in letters if isinstance(d, int)]
    assert len(said) == notes


@given(st.lists(st.one_of(st.integers(1, 99), st.text("abBxX_019", min_size=1, max_size=4)), max_size=8))
def test_symbols_and_letters_are_one_to_one_and_parse_again(shape):
    ((spec,), (out,), _) = specs_of_graph(add_model(shape))
    assert spec.shape == out.shape
    pairs = {(old, new) for old, new in zip(shape, spec.shape, strict=True) if isinstance(old, str)}
    assert len({old for old, _ in pairs}) == len({new for _, new in pairs}) == len(pairs)
    if shape:
        assert TensorSpec.parse(f"image={'x'.join(str(s) for s in spec.shape)}") == spec


def test_initializers_among_the_inputs_are_no_inputs():
    model = add_model()
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [1]))
    assert [spec.name for spec in specs_of_graph(model)[0]] == ["image"]


def test_an_output_without_a_shape_is_inferred():
    model = add_model(("N", 3))
    model.graph.output[0].type.tensor_type.ClearField("shape")
    assert specs_of_graph(model)[1] == (TensorSpec(name="sum", shape=("B", 3)),)


def test_types_and_ranks_that_cannot_be_run_are_refused():
    model = add_model(("N", 3))
    model.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(GraphError, match="rank of image"):
        specs_of_graph(model)
    with pytest.raises(GraphError, match="string"):
        specs_of_graph(add_model(dtype=TensorProto.STRING))


@pytest.mark.parametrize("content", [b"this is a text file, named .onnx\n", b"", b"\x00" * 100, b"{}"])
def test_what_is_no_graph_is_refused(tmp_path, content):
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(GraphError, match="not an ONNX file"):
        load(tmp_path / "m.onnx")


@given(cut=st.floats(0, 0.999))
def test_a_truncated_graph_is_refused(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("cut") / "m.onnx"
    data = add_model(weight=np.ones(400, np.float32)).SerializeToString()
    path.write_bytes(data[: int(len(data) * cut)])
    with pytest.raises(GraphError, match=r"m\.onnx"):
        load(path)


def test_a_graph_that_the_checker_refuses_is_refused(tmp_path):
    model = add_model()
    model.graph.node[0].input[1] = "nothing"
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(GraphError, match="nothing"):
        load(tmp_path / "m.onnx")


@pytest.fixture
def external(tmp_path):
    onnx.save(
        add_model(weight=np.arange(999, dtype=np.float32), shape=("N", 999)),
        tmp_path / "m.onnx",
        save_as_external_data=True,
        location="m.data",
    )
    return tmp_path / "m.onnx"


def test_external_data_is_listed_and_fingerprinted(external):
    assert load(external).external_data == (external.parent / "m.data",)
    options = SourceOptions(source=str(external))
    before = resolve(str(external)).fingerprint(options)
    data = bytearray((external.parent / "m.data").read_bytes())
    data[100] ^= 1
    (external.parent / "m.data").write_bytes(data)
    after = resolve(str(external)).fingerprint(options)
    assert {key for key in before if before[key] != after[key]} == {"data m.data"}


def test_external_data_that_is_missing_short_or_elsewhere_is_refused(external):
    data = external.parent / "m.data"
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(GraphError, match="fewer than"):
        load(external)
    data.unlink()
    with pytest.raises(GraphError, match=r"needs its data file m\.data"):
        load(external)
    model = onnx.load(external, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        entry.value = "../../etc/passwd" if entry.key == "location" else entry.value
    external.write_bytes(model.SerializeToString())
    with pytest.raises(GraphError, match="outside its folder"):
        load(external)


def test_loading_a_graph_does_not_import_torch(external):
    code = f"""
import sys
from trtship.sources import SourceOptions, resolve
options = SourceOptions(source={str(external)!r})
resolve(options.source).fingerprint(options)
resolve(options.source).load(options)
sys.exit("torch" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
