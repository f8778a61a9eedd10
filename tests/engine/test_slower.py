"""What two real plans of one graph, built without a GPU, say of each other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from trtship.engine import PlanLayers, plan_from_onnx
from trtship.engine.slower import Side, why_slower
from trtship.family import choose_family, installed_families
from trtship.passes import simplify, to_precision
from trtship.passes.quantize import to_quantized
from trtship.passes.quantize_places import tensors_to_calibrate
from trtship.passes.windows_into_heads import WindowsIntoHeads
from trtship.spec import Precision, ShapeRange, TensorSpec

needs_rtx = pytest.mark.skipif("tensorrt_rtx" not in installed_families(), reason="needs tensorrt_rtx")
Built = dict[str, tuple[Path, PlanLayers]]


@pytest.fixture(scope="module")
def built(exported: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The small Swin in fp16, in int8 with every product quantized, and in fp16 with an MLP in fp32."""
    folder = tmp_path_factory.mktemp("slower")
    simple = folder / "simple.onnx"
    simplify(exported("swin"), folder / "plain.onnx", sizes=[{"B": 2}])
    WindowsIntoHeads().apply(folder / "plain.onnx", simple)
    ranges = dict.fromkeys(tensors_to_calibrate(simple), 6.0)
    report = to_quantized(simple, folder / "q.onnx", Precision.INT8, ranges, scope="all")
    products = report.quantized
    to_precision(simple, folder / "fp16.onnx", Precision.FP16)
    to_precision(folder / "q.onnx", folder / "int8.onnx", Precision.INT8)
    to_precision(simple, folder / "mixed.onnx", Precision.FP16, keep=products[:3])
    family, _ = choose_family("tensorrt_rtx")
    inputs = (TensorSpec(name="input", shape=("B", 3, 56, 56)),)
    return {
        name: (
            folder / f"{name}.onnx",
            plan_from_onnx(
                folder / f"{name}.onnx",
                family=family,
                inputs=inputs,
                ranges={"B": ShapeRange(min=1, opt=2, max=4)},
                precision=Precision.FP16,
            ).layers,
        )
        for name in ("fp16", "int8", "mixed")
    }


def side(built: Built, name: str) -> Side:
    graph, layers = built[name]
    return Side(name, graph, layers)


@needs_rtx
def test_kernels_that_only_rescale_are_found_in_int8(built: Built) -> None:
    """TensorRT for RTX 1.6.1 multiplies each of q, k and v with its scale in a kernel that does nothing else."""
    slow = side(built, "int8")
    lines = why_slower(slow, side(built, "fp16"))
    bare = slow.only_quantizing
    assert len(bare) > 0
    assert lines[0].startswith(f"kernels that only quantize or rescale (unfused Q/DQ): {len(bare)}, 0 in fp16; ")
    for layer in bare:
        assert {slow.nodes[name].op_type for name in layer.nodes if name in slow.nodes} <= {
            "QuantizeLinear",
            "DequantizeLinear",
            "MatMul",
            "Gemm",
        }


@needs_rtx
def test_layers_in_fp32_are_found_in_a_mixture(built: Built) -> None:
    lines = why_slower(side(built, "mixed"), side(built, "fp16"))
    counts = [len(side(built, name).full_layers) for name in ("mixed", "fp16")]
    assert counts[0] > counts[1]
    assert any(line.startswith(f"layers with results in fp32: {counts[0]}, {counts[1]} in fp16; ") for line in lines)


@needs_rtx
def test_wider_tensors_between_layers_are_counted(built: Built) -> None:
    wide, narrow = side(built, "fp16"), side(built, "int8")
    assert wide.written > 1.02 * narrow.written
    line = f"MiB that its layers write: {wide.written:.3g}, {narrow.written:.3g} in int8"
    assert line in why_slower(wide, narrow)


@needs_rtx
def test_a_plan_has_no_more_of_anything_than_itself(built: Built) -> None:
    (line,) = why_slower(side(built, "fp16"), side(built, "fp16"))
    assert line.startswith("it has no more layers, reformats or unfused Q/DQ than fp16")


@needs_rtx
def test_products_that_were_to_be_multiplied_in_8_bits_and_are_not(built: Built) -> None:
    """All are in this plan; one whose layer is said to read fp16 is told."""
    graph, layers = built["int8"]
    assert Side("int8", graph, layers).wide_products == []
    product = next(one for one in layers.layers if one.kind == "gemm" and any(t.dtype == "int8" for t in one.inputs))
    wide = msgspec.structs.replace(
        product, inputs=tuple(msgspec.structs.replace(t, dtype="float16") for t in product.inputs)
    )
    changed = msgspec.structs.replace(layers, layers=tuple(wide if one is product else one for one in layers.layers))
    lines = why_slower(Side("int8", graph, changed), side(built, "fp16"))
    (line,) = [
        line for line in lines if line.startswith("quantized products that are not multiplied in 8 bits: 1, 0 in")
    ]
    assert any(name in line for name in product.nodes)


@needs_rtx
def test_with_a_profile_it_tells_where_the_time_goes(built: Built) -> None:
    graph, layers = built["int8"]
    names = {layer.name for layer in layers.layers if layer.kind == "gemm"}
    slow = Side("int8", graph, layers, milliseconds=dict.fromkeys(names, 2.0))
    graph, layers = built["fp16"]
    safe = Side("fp16", graph, layers, milliseconds={layer.name: 0.001 for layer in layers.layers})
    assert any(line.startswith(f"{2 * len(names):.3g} ms in layers of kind gemm, ") for line in why_slower(slow, safe))


@needs_rtx
def test_where_a_plan_tells_no_layers_nothing_is_said(built: Built) -> None:
    graph, layers = built["fp16"]
    nothing = PlanLayers(source="", reason="TensorRT's log lists no layers", layers=())
    assert why_slower(Side("int8", graph, nothing), Side("fp16", graph, layers)) == ()
