"""TensorRT parses and builds what the passes write; TensorRT for RTX needs no GPU for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from trtship.engine import plan_from_onnx
from trtship.errors import TrtshipError
from trtship.family import Family, choose_family
from trtship.graphs import load_graph
from trtship.passes import to_precision
from trtship.passes.base import interface_of
from trtship.passes.optimization import optimize
from trtship.spec import Precision, ShapeRange


@pytest.fixture(scope="module")
def family() -> Family:
    try:
        found, _ = choose_family()
    except TrtshipError as error:
        pytest.skip(str(error))
    if not found.builds_without_gpu():
        pytest.skip(f"{found} builds only where its GPU is")
    return found


@pytest.mark.parametrize("name", ["timm", "torchvision V2", "transformers", "own V2"])
def test_optimized_swins_build_with_a_dynamic_batch(
    name: str, family: Family, swin: Callable[..., Path], tmp_path: Path
) -> None:
    report = optimize(swin(name, simple=True), tmp_path / "fast.onnx")
    assert all(one.kept for one in report.passes if one.rewritten)
    to_precision(tmp_path / "fast.onnx", tmp_path / "typed.onnx", Precision.FP16)
    inputs, _ = interface_of(load_graph(tmp_path / "typed.onnx"))
    plan = plan_from_onnx(
        tmp_path / "typed.onnx",
        family=family,
        inputs=inputs,
        ranges={"B": ShapeRange(min=1, opt=2, max=4)},
        precision=Precision.FP16,
    )
    assert len(plan.data) > 10_000
