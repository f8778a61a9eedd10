"""What TensorRT says of a plan's layers, read. The sample is from plans of small Swins, built with 1.6.1.120."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtship.engine.layer_text import Layer, LayerTensor, layers_from_json, layers_from_text, nodes_of

SAMPLE = (Path(__file__).parent / "layers_tensorrt_rtx_1.6.1.txt").read_text()
ATTENTION = "/layers/layers.0/blocks/blocks.0/attn"
# Field names and the sentence in place of a type as NVIDIA's documentation of the engine inspector has them:
# https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/engine-tools.html
DOCUMENTED = {
    "Name": "conv1 + relu1",
    "LayerType": "CaskConvolution",
    "Inputs": [
        {
            "Name": "x",
            "Dimensions": [16, 512, 28, 28],
            "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format.",
        }
    ],
    "Outputs": [{"Name": "y", "Dimensions": [16, 256, 28, 28], "Format/Datatype": "Row major linear FP16 format"}],
    "ParameterType": "Convolution",
    "Kernel": [1, 1],
    "Weights": {"Type": "Int8", "Count": 131072},
    "Activation": "RELU",
    "TacticName": "sm80_xmma_fprop_implicit_gemm",
    "TacticValue": "0x11bde0e1d9f2f35d",
    "StreamId": 0,
    "Metadata": "[ONNX Layer: conv1]\x1e[ONNX Layer: relu1]",
}


def test_every_layer_of_a_real_log_is_read() -> None:
    layers, unread = layers_from_text(SAMPLE)
    assert unread == 0
    assert [layer.kind for layer in layers] == [
        "shape_call", "kgen", "correlation", "gemm", "kgen", "runtime_fusion", "kgen", "reshape", "cast",
    ]  # fmt: skip


def test_a_fused_attention_kernel_of_a_real_log() -> None:
    layer = next(one for one in layers_from_text(SAMPLE)[0] if one.name.startswith("_gemm_mha"))
    assert layer.name == "_gemm_mha_v2_myl0_9"
    assert layer.tactic.startswith("_gemm_mha_v2_0x")
    assert {(one.shape, one.dtype) for one in layer.inputs} == {((-1, 49, 32), "float16"), ((-1, 32, 49), "float16")}
    assert [(one.shape, one.dtype) for one in layer.outputs] == [((-1, 49, 32), "float16")]
    assert {f"{ATTENTION}/MatMul", f"{ATTENTION}/softmax/Softmax", f"{ATTENTION}/MatMul_1"} <= set(layer.nodes)


def test_weights_are_no_inputs_and_a_layer_may_have_no_nodes() -> None:
    by_kind = {layer.kind: layer for layer in layers_from_text(SAMPLE)[0]}
    assert [one.name for one in by_kind["correlation"].inputs] == ["/patch_embed/proj/Conv_output_0.1_20_myl0"]
    assert by_kind["shape_call"] == Layer(
        name="__mye24501_0_myl0_0", kind="shape_call", nodes=(), inputs=(), outputs=(), tactic=""
    )
    assert by_kind["cast"].outputs[0] == LayerTensor(name="hvar^275934i64_myl0", shape=(1,), dtype="int64")


@pytest.mark.parametrize("text", ["", "Layers:\n", "something else entirely", "Layers:\n\nI/O Tensors:\n Name: x"])
def test_a_text_without_layers_has_none(text: str) -> None:
    assert layers_from_text(text) == ((), 0)


def test_an_entry_of_another_form_is_counted_and_the_others_are_read() -> None:
    spoiled = SAMPLE.replace("LayerType: correlation, Inputs: [", "LayerType: correlation, Operands: [")
    spoiled = spoiled.replace("Outputs: [ { Name: hvar^", "Outputs: [ { Called: hvar^")
    layers, unread = layers_from_text(spoiled)
    assert (len(layers), unread) == (7, 2)


PIECES = [*"ab/:.,_[]{}() '\"→", "Name: ", "], ", " }]", " }, { ", "[ONNX Layer: ", "Dimensions: ", ", LayerType: "]
names = st.lists(st.sampled_from(PIECES), min_size=1, max_size=12).map("".join)
tensors = st.builds(
    LayerTensor,
    name=names,
    shape=st.lists(st.integers(-1, 10**6), max_size=5).map(tuple),
    dtype=st.sampled_from(["Float", "Half", "Int64", "Bool", "FP8"]),
)
layers_drawn = st.lists(
    st.builds(
        Layer,
        name=names,
        kind=st.sampled_from(["gemm", "kgen", "runtime_fusion", "shape_call"]),
        nodes=st.lists(names, max_size=4, unique=True).map(tuple),
        inputs=st.lists(tensors, max_size=3).map(tuple),
        outputs=st.lists(tensors, max_size=3).map(tuple),
        tactic=st.sampled_from(["", "__myl_Cast_0xba12", "__myelin_CASK_STUB"]),
    ),
    max_size=4,
)
OURS = {"Float": "float32", "Half": "float16", "Int64": "int64", "Bool": "bool", "FP8": "FP8"}


def in_ours(layer: Layer) -> Layer:
    def of(found: tuple[LayerTensor, ...]) -> tuple[LayerTensor, ...]:
        return tuple(LayerTensor(name=t.name, shape=t.shape, dtype=OURS[t.dtype]) for t in found)

    return Layer(
        name=layer.name,
        kind=layer.kind,
        nodes=layer.nodes,
        inputs=of(layer.inputs),
        outputs=of(layer.outputs),
        tactic=layer.tactic,
    )


def metadata(layer: Layer) -> str:
    return "\x1f".join(f"[ONNX Layer: {name}]" for name in layer.nodes)


def as_text(layer: Layer, constants: tuple[LayerTensor, ...]) -> str:
    """One line, as TensorRT for RTX 1.6.1 writes it."""

    def listed(found: tuple[LayerTensor, ...]) -> str:
        items = []
        for t in found:
            sizes = ",".join(map(str, t.shape))
            kind = f"Datatype: {t.dtype}, Format: (Arbitrary) Format with stride order = [1,2,0]"
            items.append(f"{{ Name: {t.name}, Dimensions: [{sizes}], Strides: [{sizes}], StrideOrder: [0], {kind} }}")
        return f"[ {', '.join(items)}]" if items else "[]"

    return (
        f"Name: {layer.name}, LayerType: {layer.kind}, Inputs: {listed(layer.inputs)}, "
        f"Constants: {listed(constants)}, Outputs: {listed(layer.outputs)}, "
        f"TacticName: {layer.tactic}, StreamId: 0, Metadata: {metadata(layer)}"
    )


def as_plain_json(layer: Layer) -> dict[str, Any]:
    def listed(found: tuple[LayerTensor, ...]) -> list[dict[str, Any]]:
        return [{"Name": t.name, "Dimensions": list(t.shape), "Datatype": t.dtype, "Format": "(Linear)"} for t in found]

    return {
        "Name": layer.name,
        "LayerType": layer.kind,
        "Inputs": listed(layer.inputs),
        "Outputs": listed(layer.outputs),
        "TacticName": layer.tactic,
        "StreamId": 0,
        "Metadata": metadata(layer),
    }


@given(layers_drawn, st.lists(tensors, max_size=2).map(tuple))
def test_whatever_the_names_are_text_and_json_give_the_same_layers(
    layers: list[Layer], constants: tuple[LayerTensor, ...]
) -> None:
    lines = "\n".join(as_text(layer, constants) for layer in layers)
    wanted = tuple(in_ours(layer) for layer in layers)
    assert layers_from_text(f"Layers:\n{lines}\n\nI/O Tensors:\n Name: x, IOMode: Input\n") == (wanted, 0)
    assert layers_from_json(json.dumps({"Layers": [as_plain_json(one) for one in layers], "Bindings": []})) == wanted


def test_a_layer_as_it_is_documented_for_full_tensorrt() -> None:
    assert layers_from_json(json.dumps({"Layers": [DOCUMENTED], "Bindings": ["x", "y"]})) == (
        Layer(
            name="conv1 + relu1",
            kind="CaskConvolution",
            nodes=("conv1", "relu1"),
            inputs=(LayerTensor(name="x", shape=(16, 512, 28, 28), dtype="int8"),),
            outputs=(LayerTensor(name="y", shape=(16, 256, 28, 28), dtype="float16"),),
            tactic="sm80_xmma_fprop_implicit_gemm",
        ),
    )


@given(st.sets(st.sampled_from(sorted(DOCUMENTED))))
def test_any_field_may_be_missing(missing: set[str]) -> None:
    plain = {key: value for key, value in DOCUMENTED.items() if key not in missing}
    (layer,) = layers_from_json(json.dumps({"Layers": [plain]}))
    assert layer.name == ("" if "Name" in missing else "conv1 + relu1")
    assert layer.nodes == (() if "Metadata" in missing else ("conv1", "relu1"))
    assert len(layer.inputs) == ("Inputs" not in missing)


def test_a_plan_built_without_details_tells_names_alone() -> None:
    (layer,) = layers_from_json('{"Layers": ["conv1 + relu1"]}')
    assert (layer.name, layer.kind, layer.nodes) == ("conv1 + relu1", "", ())


@pytest.mark.parametrize("text", ["", "no JSON", "[]", '{"Layers": 3}', "{}", "null"])
def test_what_is_no_list_of_layers_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        layers_from_json(text)


def test_names_are_told_apart_by_control_characters_alone() -> None:
    assert nodes_of("[ONNX Layer: a][ONNX Layer: b]]\x1f[ONNX Layer: c]\x1e[ONNX Layer: c]\x1f[SHUFFLE]") == (
        "a][ONNX Layer: b]",
        "c",
    )
