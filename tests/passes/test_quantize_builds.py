"""What TensorRT makes of Q/DQ: which products run in 8 bits, and whether kernels were added. No GPU is needed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from trtship.engine import plan_from_onnx
from trtship.engine.layers import PlanLayers
from trtship.errors import TrtshipError
from trtship.family import Family, choose_family
from trtship.family.logger import recording_layers
from trtship.passes import to_precision
from trtship.passes.quantize import to_quantized
from trtship.passes.quantize_places import Scope, tensors_to_calibrate
from trtship.spec import Precision, ShapeRange, TensorSpec

TYPES = {Precision.INT8: "int8", Precision.FP8: "fp8"}


@pytest.fixture(scope="module")
def family() -> Family:
    try:
        found, _ = choose_family()
    except TrtshipError as error:
        pytest.skip(str(error))
    if not found.builds_without_gpu():
        pytest.skip(f"{found} builds only where its GPU is")
    return found


def layers_of(graph: Path, folder: Path, family: Family, precision: Precision, scope: Scope | None) -> PlanLayers:
    source = graph
    if scope is not None:
        ranges = dict.fromkeys(tensors_to_calibrate(graph), 4.0)
        to_quantized(graph, folder / "q.onnx", precision, ranges, scope=scope, channels_behind=family.is_rtx)
        source = folder / "q.onnx"
    to_precision(source, folder / "typed.onnx", precision)
    return plan_from_onnx(
        folder / "typed.onnx",
        family=family,
        inputs=(TensorSpec(name="input", shape=("B", 1, 28, 28)),),
        ranges={"B": ShapeRange(min=32, opt=32, max=32)},
        precision=precision,
        targets=("8.9",),
    ).layers


def test_no_8_bit_product_leaves_its_scale_to_the_kernel_behind(
    digits_graph: Path, family: Family, tmp_path: Path
) -> None:
    """Its sum of integers would be rounded to fp16 first, which holds no more than 65504 (benchmarks/notes.md: NaN on
    an H100). TensorRT for RTX's log names a factor of 1 after the product, `..._alpha`; one of scales is folded."""
    if not family.is_rtx:
        pytest.skip("the log is of TensorRT for RTX")
    for precision in TYPES:
        with recording_layers(family.module) as said:
            layers_of(digits_graph, tmp_path, family, precision, "all")
        products = [line for line in said[-1].splitlines() if re.search(r"LayerType: gemm.*Datatype: (Int8|FP8)", line)]
        assert len(products) == 17
        assert not [line for line in products if "_alpha_myl" in line]


def products_in(layers: PlanLayers, dtype: str) -> int:
    return sum(
        any(one.dtype.lower().startswith(dtype) for one in layer.inputs)
        for layer in layers.layers
        if layer.kind in ("gemm", "runtime_fusion")
    )


@pytest.mark.parametrize(("precision", "count"), [(Precision.INT8, 9), (Precision.FP8, 13)])
def test_the_fused_scope_runs_in_8_bits_and_adds_no_kernel(
    precision: Precision, count: int, digits_graph: Path, family: Family, tmp_path: Path
) -> None:
    """q, k and v of a block are one product: with projection and patch merging 9, and in fp8 with fc2 4 more."""
    plain = layers_of(digits_graph, tmp_path, family, Precision.FP16, None)
    found = layers_of(digits_graph, tmp_path, family, precision, "fused")
    assert products_in(plain, TYPES[precision]) == 0
    assert products_in(found, TYPES[precision]) == count
    assert len(found.layers) == len(plain.layers)


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.FP8])
def test_all_products_run_in_8_bits_with_one_kernel_more_for_each_gelu(
    precision: Precision, digits_graph: Path, family: Family, tmp_path: Path
) -> None:
    plain = layers_of(digits_graph, tmp_path, family, Precision.FP16, None)
    found = layers_of(digits_graph, tmp_path, family, precision, "all")
    assert products_in(found, TYPES[precision]) == 17
    assert len(found.layers) == len(plain.layers) + 4


def test_weights_alone_leave_products_in_fp16(digits_graph: Path, family: Family, tmp_path: Path) -> None:
    found = layers_of(digits_graph, tmp_path, family, Precision.INT8, "weights")
    assert found.layers
    assert products_in(found, "int8") == 0
