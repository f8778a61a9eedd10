"""Constants that keep a division from 0 / 0 stay in the graph, however small."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from trtship.export.exporters import Job, export_dynamo
from trtship.session.onnxruntime import OnnxRuntimeSession
from trtship.spec import ShapeRange, TensorSpec


class Scaled(nn.Module):
    def __init__(self, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x.relu()
        return y / (y.amax(1, keepdim=True) + self.epsilon)


@pytest.mark.parametrize("epsilon", [1e-8, 1e-12])
def test_an_epsilon_that_onnxscript_takes_for_0_stays(epsilon: float, tmp_path: Path) -> None:
    batch = ShapeRange(min=1, opt=2, max=4)
    inputs = (TensorSpec(name="x", shape=("B", 6)),)
    job = Job(inputs, ("y",), {"B": 2}, {"B": batch}, opset=20, external_over=2**30)
    made = export_dynamo(Scaled(epsilon).eval(), job, tmp_path / "a.onnx")
    assert made.failure == ""
    with OnnxRuntimeSession(tmp_path / "a.onnx") as session:
        found = session.infer({"x": np.zeros((2, 6), np.float32)})["y"]
    np.testing.assert_array_equal(found, 0)
