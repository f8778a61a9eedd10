"""TensorRT parses and builds what the precision pass writes, strongly typed; TensorRT for RTX needs no GPU for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from graphs import SMALL
from trtship.engine import plan_from_onnx
from trtship.errors import TrtshipError
from trtship.family import Family, choose_family
from trtship.graphs import load_graph
from trtship.passes import simplify, to_precision
from trtship.passes.base import interface_of
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


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.BF16])
@pytest.mark.parametrize("name", SMALL)
def test_small_models_build_with_a_dynamic_batch(
    name: str, precision: Precision, family: Family, exported: Callable[[str], Path], tmp_path: Path
) -> None:
    simplify(exported(name), tmp_path / "simple.onnx", sizes=[{"B": 2}])
    to_precision(tmp_path / "simple.onnx", tmp_path / "typed.onnx", precision)
    inputs, _ = interface_of(load_graph(tmp_path / "typed.onnx"))
    plan = plan_from_onnx(
        tmp_path / "typed.onnx",
        family=family,
        inputs=inputs,
        ranges={"B": ShapeRange(min=1, opt=2, max=4)},
        precision=precision,
    )
    assert len(plan.data) > 10_000
