"""TensorRT builds strongly typed graphs whose sizes, sines and coordinates stay in fp32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from positions_models import UPSAMPLING, Rotary, Steps, exported, upsampling
from test_precision_builds import family as family
from torch import nn

from trtship.engine import plan_from_onnx
from trtship.family import Family
from trtship.graphs import load_graph
from trtship.passes import to_precision
from trtship.passes.base import interface_of
from trtship.spec import Precision, ShapeRange


def build(module: nn.Module, args: tuple[torch.Tensor, ...], names: list[str], family: Family, folder: Path) -> int:
    source = exported(module, args, folder / "a.onnx", names)
    to_precision(source, folder / "b.onnx", Precision.FP16)
    inputs, _ = interface_of(load_graph(folder / "b.onnx"))
    ranges = {letter: ShapeRange(min=1, opt=2, max=4) for spec in inputs for letter in spec.letters}
    plan = plan_from_onnx(folder / "b.onnx", family=family, inputs=inputs, ranges=ranges, precision=Precision.FP16)
    return len(plan.data)


@pytest.mark.parametrize("how", [how for how in UPSAMPLING if how not in ("bilinear", "to a size")])
def test_upsampling_builds(how: str, family: Family, tmp_path: Path) -> None:
    assert build(upsampling(how), (torch.randn(2, 3, 8, 8),), ["x"], family, tmp_path) > 5_000


def test_embeddings_of_steps_and_places_build(family: Family, tmp_path: Path) -> None:
    (tmp_path / "steps").mkdir()
    assert build(Steps(), (torch.tensor([[3], [999]]),), ["t"], family, tmp_path / "steps") > 5_000
    args = (torch.randn(2, 5, 16), torch.tensor([[0, 1, 2, 3, 4]] * 2))
    assert build(Rotary(), args, ["x", "place"], family, tmp_path) > 5_000
