"""Exports whose batch became a constant, mended between two checks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from trtship.errors import ExportMismatchError
from trtship.export import EXPORTERS, graph_from_source, onnx_from_torch
from trtship.export.outputs import settle_outputs
from trtship.graphs import graph_files
from trtship.passes.thaw_unknown import thaw
from trtship.progress import Progress
from trtship.session.onnxruntime import OnnxRuntimeSession
from trtship.sources import SourceOptions, resolve
from trtship.spec import ShapeRange, TensorSpec

IMAGE = (TensorSpec(name="input", shape=("B", 3, 8, 8)),)
both = pytest.mark.parametrize("exporter", EXPORTERS)


class Windows(torch.nn.Module):
    """Window partition and its reverse, the batch worked out as Microsoft's Swin does, as a Python number."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.Linear(64, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, c, h, w = x.shape
        windows = self.mix(x.view(b, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 1, 3, 5).reshape(-1, c, 16))
        count = int(windows.shape[0] / (h * w / 16))
        return windows.view(count, h // 4, w // 4, c, 4, 4).mean((1, 2, 4, 5))


class Picky(torch.nn.Module):
    """Gives each image of the batch a weight of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch = int(x.shape[0] / 1)
        return x.mean((2, 3)) * torch.tensor([[1.0 + image] for image in range(batch)])


class Counts(torch.nn.Module):
    """Its output depends on the batch, which no repair of shapes can see."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3)) * int(x.shape[0] / 1)


class Heard(Progress):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def exported(module: torch.nn.Module, target: Path, **options: Any) -> Any:
    options = {"inputs": IMAGE, "thaw": thaw, **options}
    return onnx_from_torch(module.eval(), target, outputs=["logits"], **options)


def assert_same(module: torch.nn.Module, graph: Path, batch: int) -> None:
    x = torch.randn(batch, 3, 8, 8)
    with torch.no_grad(), OnnxRuntimeSession(graph) as session:
        found = torch.from_numpy(session.infer({"input": x.numpy()})["logits"])
        torch.testing.assert_close(found, module(x), rtol=0, atol=1e-5)


@both
def test_a_frozen_batch_is_made_dynamic_noted_and_reported(exporter: str, tmp_path: Path) -> None:
    module, progress = Windows(), Heard()
    report = exported(module, tmp_path / "m.onnx", exporter=exporter, external_over=100, progress=progress)
    places = {"dynamo": 3, "torchscript": 1}[exporter]  # dynamo takes the whole batch for a constant
    assert report.exporter == exporter
    assert len(report.thawed) == places
    assert "(Reshape)" in report.thawed[-1]
    in_places = "1 place" if places == 1 else f"{places} places"
    assert progress.notes == [f"the batch was frozen at 2 in {in_places}, and is dynamic again"]
    assert {m.sizes["B"] for m in report.checks} == {1, 2, 3}
    assert report.outputs[0].shape == ("B", 3)
    assert [path.name for path in graph_files(tmp_path / "m.onnx")] == ["m.onnx", "m.onnx.data"]
    assert_same(module, tmp_path / "m.onnx", 5)


def test_the_exporter_that_is_preferred_is_kept(tmp_path: Path) -> None:
    assert exported(Windows(), tmp_path / "m.onnx").exporter == "dynamo"


@both
def test_a_right_graph_has_nothing_repaired(exporter: str, tmp_path: Path) -> None:
    progress = Heard()
    report = exported(torch.nn.Conv2d(3, 4, 3), tmp_path / "m.onnx", exporter=exporter, progress=progress)
    assert (report.thawed, progress.notes) == ((), [])


def test_what_cannot_be_repaired_is_refused_with_the_node_and_the_models_line(tmp_path: Path) -> None:
    with pytest.raises(ExportMismatchError, match="differs from PyTorch at B=1, while it was traced at B=2") as caught:
        exported(Picky(), tmp_path / "m.onnx")
    assert "the batch is frozen at 2 in the node" in caught.value.why
    assert f"from {__file__}:" in caught.value.why


@both
def test_what_no_pass_can_see_is_refused_as_before(exporter: str, tmp_path: Path) -> None:
    with pytest.raises(ExportMismatchError, match="differs from PyTorch at B=1") as caught:
        exported(Counts(), tmp_path / "m.onnx", exporter=exporter)
    assert "relative L2" in caught.value.why
    assert "frozen" not in caught.value.why


def test_other_dynamic_sizes_are_taken_from_their_range(tmp_path: Path) -> None:
    class Tokens(torch.nn.Module):
        """Takes 8 tokens or more, in multiples of 4."""

        def forward(self, image: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
            grouped = tokens.reshape(tokens.shape[0], -1, 4)[:, 1:]
            count = int(image.shape[0] / 1)
            return image.view(count, 3, 64).mean(2) + grouped.mean((1, 2))[:, None]

    inputs = (*IMAGE, TensorSpec(name="tokens", shape=("B", "L")))
    ranges = {"L": ShapeRange(min=8, opt=12, max=16)}
    report = exported(Tokens(), tmp_path / "m.onnx", inputs=inputs, ranges=ranges, exporter="torchscript")
    assert len(report.thawed) == 1
    assert {m.sizes["L"] for m in report.checks} == {8, 12, 16}


def adopted(path: Path, target: Path, progress: Progress) -> Any:
    loaded = resolve(str(path)).load(SourceOptions(source=str(path)))
    return graph_from_source(loaded, target, ranges={}, thaw=thaw, progress=progress)


def traced_at(batch: int, path: Path, *, dynamic: bool = True) -> tuple[torch.nn.Module, Path]:
    module = Windows().eval()
    names = {"input_names": ["input"], "output_names": ["logits"]}
    axes = {"dynamic_axes": {"input": {0: "batch"}}} if dynamic else {}
    torch.onnx.export(
        module, (torch.randn(batch, 3, 8, 8),), str(path), dynamo=False, opset_version=17, **names, **axes
    )
    return module, path


@pytest.mark.filterwarnings("ignore")
def test_a_graph_that_was_brought_frozen_at_one_is_made_dynamic(tmp_path: Path) -> None:
    """Its output is declared with one row, and grows."""
    progress = Heard()
    module, source = traced_at(1, tmp_path / "in.onnx")
    report = adopted(source, tmp_path / "out.onnx", progress)
    assert (report.exporter, len(report.thawed)) == ("none: the graph was given", 1)
    assert progress.notes == ["the batch was frozen at 1 in 1 place, and is dynamic again"]
    assert isinstance(report.outputs[0].shape[0], str)
    assert_same(module, tmp_path / "out.onnx", 5)


@pytest.mark.filterwarnings("ignore")
def test_a_graph_that_was_brought_with_a_fixed_batch_keeps_it(tmp_path: Path) -> None:
    module, source = traced_at(4, tmp_path / "in.onnx", dynamic=False)
    report = adopted(source, tmp_path / "out.onnx", Heard())
    assert (report.thawed, report.traced, report.outputs[0].shape) == ((), {}, (4, 3))
    assert_same(module, tmp_path / "out.onnx", 4)


def test_an_output_whose_declared_batch_is_the_traced_one_gets_the_batchs_letter(tmp_path: Path) -> None:
    graph = tmp_path / "m.onnx"
    inputs = [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["B", 3])]
    outputs = [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [2, 3])]
    body = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", inputs, outputs)
    onnx.save(onnx.helper.make_model(body, opset_imports=[onnx.helper.make_opsetid("", 20)]), graph)
    shapes = {"y": [(2, 3), (1, 3), (5, 3)]}
    found = settle_outputs(graph, [TensorSpec(name="y", shape=(2, 3))], shapes, sizes=[{"B": 2}, {"B": 1}, {"B": 5}])
    assert found == (TensorSpec(name="y", shape=("B", 3)),)
    assert onnx.load(graph).graph.output[0].type.tensor_type.shape.dim[0].dim_param == "B"
