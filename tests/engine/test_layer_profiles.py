"""Which optimization profile each layer of a real plan is told to run in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from graphs import ATTENTION, ATTENTION_INPUTS, written
from trtship.engine import plan_from_onnx
from trtship.errors import TrtshipError
from trtship.family import choose_family
from trtship.spec import Precision, ShapeRange


def test_a_graph_that_is_fused_as_a_whole_has_layers_in_each_profile(tmp_path: Path) -> None:
    """No layer of it has a name from the graph, to which TensorRT would add the profile."""
    try:
        family, _ = choose_family()
    except TrtshipError as error:
        pytest.skip(str(error))
    if not family.builds_without_gpu():
        pytest.skip(f"{family} builds only where its GPU is")
    plan = plan_from_onnx(
        written(tmp_path / "m.onnx", ATTENTION, bias=np.zeros((1, 4, 49, 49), np.float16)),
        family=family,
        inputs=ATTENTION_INPUTS,
        ranges={"B": ShapeRange(min=1, opt=4, max=8)},
        single=(4,),
        precision=Precision.FP16,
    )
    assert len(plan.report.profiles) == 2
    kernels = [layer.profile for layer in plan.layers.layers if layer.name.startswith("_gemm_mha")]
    assert sorted(kernels) == [0, 1]
