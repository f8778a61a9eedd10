"""Both exporters, and what they get wrong without a word."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from trtship.errors import ExportMismatchError, GraphError, SourceError, SpecError
from trtship.export import EXPORTERS, onnx_from_torch
from trtship.export.onnx import traced_sizes
from trtship.export.sizes import sizes_around, sizes_to_compare
from trtship.progress import Progress
from trtship.session.onnxruntime import OnnxRuntimeSession
from trtship.spec import ShapeRange, TensorSpec

IMAGE = (TensorSpec(name="input", shape=("B", 3, 8, 8)),)
both = pytest.mark.parametrize("exporter", EXPORTERS)


def specs(*texts: str) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec.parse(text) for text in texts)


def seeded(module: Callable[[], torch.nn.Module]) -> torch.nn.Module:
    torch.manual_seed(0)
    return module().eval()


class Windows(torch.nn.Module):
    """Window partition and its reverse; `frozen` works the batch out as Microsoft's Swin does, as a Python number."""

    def __init__(self, *, frozen: bool) -> None:
        super().__init__()
        self.frozen, self.mix = frozen, torch.nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, c, h, w = x.shape
        windows = x.view(b, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 1, 3, 5).reshape(-1, c, 16)
        windows = self.mix(windows)
        count = int(windows.shape[0] / (h * w / 16)) if self.frozen else -1
        return windows.view(count, h // 4, w // 4, c, 4, 4).mean((1, 2, 4, 5))


class Small(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.conv(x)).mean((2, 3)))


class Unexportable(Small):
    """torch.export does not get through it, TorchScript does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.compiler.is_exporting():
            raise TypeError("nothing for torch.export")
        return super().forward(x)


@both
def test_a_model_that_freezes_the_batch_is_refused(exporter: str, tmp_path: Path) -> None:
    with pytest.raises(ExportMismatchError) as caught:
        onnx_from_torch(
            seeded(lambda: Windows(frozen=True)),
            tmp_path / "m.onnx",
            inputs=IMAGE,
            outputs=["logits"],
            exporter=exporter,  # type: ignore[arg-type]
        )
    assert "traced at B=2" in caught.value.what
    assert "int(x.shape[0] / n)" in caught.value.do
    assert caught.value.exit_code == 1


@both
def test_the_same_model_without_the_frozen_number_is_taken(exporter: str, tmp_path: Path) -> None:
    module = seeded(lambda: Windows(frozen=False))
    report = onnx_from_torch(
        module, tmp_path / "m.onnx", inputs=IMAGE, outputs=["logits"], exporter=exporter  # type: ignore[arg-type]
    )  # fmt: skip
    assert report.exporter == exporter
    assert [m.sizes["B"] for m in report.checks] == [2, 1, 3]
    assert all(m.rel_l2 is not None and m.rel_l2 <= report.bound for m in report.checks)
    x = torch.randn(7, 3, 8, 8)
    with OnnxRuntimeSession(tmp_path / "m.onnx") as session, torch.no_grad():
        torch.testing.assert_close(session.infer({"input": x})["logits"], module(x), rtol=1e-5, atol=1e-6)
    assert list(tmp_path.iterdir()) == [tmp_path / "m.onnx"]


def test_with_no_exporter_named_a_frozen_batch_is_still_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportMismatchError):
        onnx_from_torch(
            seeded(lambda: Windows(frozen=True)), tmp_path / "m.onnx", inputs=IMAGE, outputs=["logits"]
        )  # fmt: skip


def test_what_dynamo_refuses_torchscript_takes_and_one_line_says_why(tmp_path: Path) -> None:
    said: list[str] = []

    class Listener(Progress):
        def note(self, text: str) -> None:
            said.append(text)

    report = onnx_from_torch(
        seeded(Unexportable), tmp_path / "m.onnx", inputs=IMAGE, outputs=["logits"], progress=Listener()
    )  # fmt: skip
    assert report.exporter == "torchscript"
    assert "nothing for torch.export" in report.fell_back
    assert [text for text in said if report.fell_back in text and "\n" not in text] == said != []


def test_an_exporter_that_was_asked_for_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="dynamo exporter cannot"):
        onnx_from_torch(
            seeded(Unexportable), tmp_path / "m.onnx", inputs=IMAGE, outputs=["logits"], exporter="dynamo"
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


@both
def test_weights_over_the_limit_go_beside_the_graph(exporter: str, tmp_path: Path) -> None:
    module = seeded(lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 64)))
    onnx_from_torch(
        module,
        tmp_path / "m.onnx",
        inputs=IMAGE,
        outputs=["logits"],
        exporter=exporter,  # type: ignore[arg-type]
        external_over=4 * 192 * 64,
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
    assert (tmp_path / "m.onnx.data").stat().st_size >= 4 * 192 * 64
    assert (tmp_path / "m.onnx").stat().st_size < 10_000
    (tmp_path / "moved").mkdir()
    for file in ("m.onnx", "m.onnx.data"):
        (tmp_path / file).rename(tmp_path / "moved" / file)
    x = torch.randn(2, 3, 8, 8)
    with OnnxRuntimeSession(tmp_path / "moved" / "m.onnx") as session, torch.no_grad():
        torch.testing.assert_close(session.infer({"input": x})["logits"], module(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("exporter", "opset"), [("dynamo", 18), ("dynamo", 23), ("torchscript", 17), ("torchscript", 23), (None, 17)]
)
def test_the_opset_is_the_one_asked_for(exporter: str | None, opset: int, tmp_path: Path) -> None:
    report = onnx_from_torch(
        seeded(Small),
        tmp_path / "m.onnx",
        inputs=IMAGE,
        outputs=["logits"],
        opset=opset,
        exporter=exporter,  # type: ignore[arg-type]
    )
    found = {o.domain: o.version for o in onnx.load(tmp_path / "m.onnx").opset_import}
    assert report.opset == found[""] == opset


def test_an_opset_that_the_exporter_cannot_write_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="not in the opset asked for"):
        onnx_from_torch(
            seeded(Small),
            tmp_path / "m.onnx",
            inputs=IMAGE,
            outputs=["logits"],
            opset=17,
            exporter="dynamo",
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("opset", [16, 24])
def test_an_opset_out_of_range_is_refused(opset: int, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="17 to 23"):
        onnx_from_torch(seeded(Small), tmp_path / "m.onnx", inputs=IMAGE, outputs=["logits"], opset=opset)


class TwoInTwoOut(torch.nn.Module):
    """An image and ids -> scores, and the ids' embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.small, self.table = Small(), torch.nn.Embedding(2, 5)

    def forward(self, image: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        words = self.table(ids)
        return self.small(image) + words.mean(1), words


@both
def test_several_inputs_and_outputs_keep_their_names_and_dynamic_sizes(exporter: str, tmp_path: Path) -> None:
    module = seeded(TwoInTwoOut)
    report = onnx_from_torch(
        module,
        tmp_path / "m.onnx",
        inputs=specs("image=Bx3x8x8", "ids=BxL:int64"),
        outputs=["scores", "words"],
        ranges={"L": ShapeRange(min=3, opt=4, max=9)},
        exporter=exporter,  # type: ignore[arg-type]
    )
    assert report.traced == {"B": 2, "L": 4}
    compared = {(m.sizes["B"], m.sizes["L"]) for m in report.checks}
    assert compared == {(2, 4), (1, 4), (3, 4), (2, 3), (2, 9), (2, 8), (2, 7)}
    with OnnxRuntimeSession(tmp_path / "m.onnx") as session:
        assert [(s.name, s.shape) for s in session.inputs] == [("image", ("B", 3, 8, 8)), ("ids", ("B", "L"))]
        found = session.infer({"image": np.zeros((5, 3, 8, 8), np.float32), "ids": np.ones((5, 7), np.int64)})
    assert {name: array.shape for name, array in found.items()} == {"scores": (5, 5), "words": (5, 7, 5)}


@both
def test_a_fixed_batch_with_dynamic_height_and_width(exporter: str, tmp_path: Path) -> None:
    """The first dynamic size is no batch: it is traced at its own opt, not at 2."""
    strided = seeded(lambda: torch.nn.Sequential(torch.nn.Conv2d(3, 4, 8, stride=8), torch.nn.AdaptiveAvgPool2d(1)))
    report = onnx_from_torch(
        strided,
        tmp_path / "m.onnx",
        inputs=specs("image=1x3xHxW"),
        outputs=["output"],
        ranges={"H": ShapeRange(min=16, opt=32, max=64), "W": ShapeRange(min=16, opt=48, max=48)},
        exporter=exporter,  # type: ignore[arg-type]
    )
    assert report.traced == {"H": 32, "W": 48}
    compared = {(m.sizes["H"], m.sizes["W"]) for m in report.checks}
    alone = {(32, 48), (16, 48), (17, 48), (63, 48), (64, 48), (41, 48), (32, 16), (32, 17), (32, 33), (32, 47)}
    assert compared == alone | {(16, 16), (17, 17), (63, 47), (64, 48), (41, 33)}


@both
def test_a_static_shape_is_checked_as_it_is(exporter: str, tmp_path: Path) -> None:
    report = onnx_from_torch(
        seeded(Small),
        tmp_path / "m.onnx",
        inputs=specs("input=4x3x8x8"),
        outputs=["logits"],
        exporter=exporter,  # type: ignore[arg-type]
    )
    assert (report.traced, [m.sizes for m in report.checks]) == ({}, [{}])


def test_a_dynamic_size_without_a_range_is_refused_before_any_work() -> None:
    with pytest.raises(SpecError, match="no range for the dynamic size W"):
        traced_sizes(specs("image=Bx3xHxW"), {"H": ShapeRange(min=1, opt=2, max=3)})


def test_the_batch_is_tried_around_the_traced_one_and_other_sizes_at_their_ends() -> None:
    ranges = {"B": ShapeRange(min=4, opt=4, max=8), "L": ShapeRange(min=5, opt=5, max=7)}
    assert sizes_around({"B": 2, "L": 5}, ranges, batch="B") == (
        {"B": 2, "L": 5}, {"B": 1, "L": 5}, {"B": 3, "L": 5}, {"B": 2, "L": 7},
    )  # fmt: skip
    assert sizes_around({}, {}, batch=None) == ({},)
    assert sizes_around({"B": 2, "L": 5}, ranges, batch="B", allowed=lambda s: s["B"] != 1 and s["L"] < 7) == (
        {"B": 2, "L": 5}, {"B": 3, "L": 5},
    )  # fmt: skip


def test_graph_and_model_are_compared_at_the_ends_of_each_range_beside_them_and_at_odd_sizes() -> None:
    ranges = {"B": ShapeRange(min=4, opt=8, max=16), "L": ShapeRange(min=5, opt=6, max=7)}
    found = sizes_to_compare({"B": 4, "L": 6}, ranges, batch="B")
    assert {s["B"] for s in found if s["L"] == 6} == {1, 4, 5, 8, 11, 15, 16}
    assert {s["L"] for s in found if s["B"] == 4} == {5, 6, 7}
    assert {(s["B"], s["L"]) for s in found} >= {(4, 5), (16, 7), (8, 6), (5, 6), (15, 6), (11, 7)}
    assert len({tuple(s.items()) for s in found}) == len(found)
    assert sizes_to_compare({}, {}, batch=None) == ({},)


def test_a_batch_is_traced_within_its_range() -> None:
    assert traced_sizes(specs("x=Bx3"), {"B": ShapeRange(min=5, opt=8, max=9)}) == {"B": 5}
    assert traced_sizes(specs("x=Bx3"), {"B": ShapeRange(min=1, opt=1, max=9)}) == {"B": 2}


def test_a_model_that_gives_nan_itself_is_not_blamed_on_the_exporter(tmp_path: Path) -> None:
    class Roots(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.sqrt(x).mean((2, 3))

    with pytest.raises(SourceError, match="model itself gives NaN"):
        onnx_from_torch(Roots(), tmp_path / "m.onnx", inputs=IMAGE, outputs=["logits"], exporter="torchscript")


@both
def test_an_input_that_the_model_does_not_use_is_said(exporter: str, tmp_path: Path) -> None:
    class First(Small):
        def forward(self, x: torch.Tensor, unused: torch.Tensor) -> torch.Tensor:
            return super().forward(x)

    try:
        onnx_from_torch(
            seeded(First),
            tmp_path / "m.onnx",
            inputs=specs("x=Bx3x8x8", "unused=Bx4"),
            outputs=["logits"],
            exporter=exporter,  # type: ignore[arg-type]
        )
    except GraphError as error:
        assert "leave it out of --input" in error.do  # noqa: PT017
    else:
        with OnnxRuntimeSession(tmp_path / "m.onnx") as session:
            assert [s.name for s in session.inputs] == ["x", "unused"]


def test_nothing_is_said_on_stdout(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for exporter in EXPORTERS:
        onnx_from_torch(
            seeded(Small), tmp_path / "m.onnx", inputs=IMAGE, outputs=["logits"], exporter=exporter
        )  # fmt: skip
    assert capfd.readouterr().out == ""


def test_sizes_of_outputs_that_are_always_the_same_are_numbers_in_the_graph(tmp_path: Path) -> None:
    """A trace leaves a size open where it was worked out; later passes find it, and would seem to change the graph."""

    class Reshaped(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(x.shape[0], -1) * 2

    report = onnx_from_torch(
        Reshaped(), tmp_path / "m.onnx", inputs=IMAGE, outputs=["logits"], exporter="torchscript"
    )  # fmt: skip
    assert report.outputs == (TensorSpec(name="logits", shape=("B", 192)),)
    with OnnxRuntimeSession(tmp_path / "m.onnx") as session:
        assert session.outputs == report.outputs
