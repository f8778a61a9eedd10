"""Models that decide by the values of their inputs are refused, with the line; graphs that can decide are not."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from trtship.errors import ExportMismatchError, GraphError
from trtship.export import onnx_from_torch
from trtship.export.traces import Traced, compare_traces
from trtship.export.values import Seen, watched
from trtship.session.onnxruntime import OnnxRuntimeSession
from trtship.spec import ShapeRange, TensorSpec

pytestmark = pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
logger = logging.getLogger(__name__)
IMAGE = (TensorSpec(name="image", shape=("B", 3, 8, 8)),)
Forward = Callable[[torch.Tensor], torch.Tensor]


class Model(torch.nn.Module):
    def __init__(self, forward: Forward) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.run = torch.nn.Conv2d(3, 4, 3), forward

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.run(self.conv(image))


def branch(x: torch.Tensor) -> torch.Tensor:
    if x.max() > 1.5:
        x = x / 255
    return x


def item(x: torch.Tensor) -> torch.Tensor:
    if x.mean().item() > 0:
        return x + 1
    return x


def loop(x: torch.Tensor) -> torch.Tensor:
    while x.abs().max() > 1:
        x = x / 2
    return x


def count(x: torch.Tensor) -> torch.Tensor:
    for _ in range(int(x.abs().sum() % 3)):
        x = x * 2
    return x


def length(x: torch.Tensor) -> torch.Tensor:
    positive = x[x > 0]
    if positive.shape[0] > 100:
        return positive.sum()[None]
    return positive.mean()[None]


def chosen(x: torch.Tensor) -> torch.Tensor:
    return x * (2.0 if bool((x > 0).all()) else 1.0)


def through_numpy(x: torch.Tensor) -> torch.Tensor:
    return x + torch.from_numpy(np.float32(2) * x.mean((2, 3), keepdim=True).numpy())


def as_tensor(x: torch.Tensor) -> torch.Tensor:
    return x * torch.tensor(float(x.mean()))


def caught(x: torch.Tensor) -> torch.Tensor:
    try:
        if x.max() > 1.5:
            x = x / 255
    except Exception:
        pass
    return x


def caught_number(x: torch.Tensor) -> torch.Tensor:
    with contextlib.suppress(Exception):
        return x * 2 if int(x.abs().amax()) > 3 else x
    return x


DECIDES = [caught, caught_number, branch, item, loop, count, length, chosen]
TAKES = [through_numpy, as_tensor]


def export(forward: Forward | torch.nn.Module, target: Path, exporter: str | None = None, **options: object) -> object:
    module = forward if isinstance(forward, torch.nn.Module) else Model(forward)
    return onnx_from_torch(
        module.eval().requires_grad_(False),
        target,
        inputs=IMAGE,
        outputs=["output"],
        exporter=exporter,  # type: ignore[arg-type]
        **options,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("forward", DECIDES)
@pytest.mark.parametrize("exporter", [None, "torchscript"])
def test_a_decision_by_a_value_is_refused_with_its_line(forward: Forward, exporter: str | None, tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="decides by the values of its inputs") as caught:
        export(forward, tmp_path / "m.onnx", exporter)
    begin = forward.__code__.co_firstlineno
    lines = [f"test_values.py:{n} in {forward.__name__}" for n in range(begin, begin + 6)]
    assert any(line in caught.value.why for line in lines)
    assert "torch.where or torch.cond" in caught.value.do
    assert caught.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("forward", TAKES)
def test_a_trace_that_takes_a_value_is_refused(forward: Forward, tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="decides by the values of its inputs"):
        export(forward, tmp_path / "m.onnx", "torchscript")


@pytest.mark.parametrize("forward", [*TAKES, pytest.param(lambda x: x * x.max().item(), id="item")])
def test_what_no_line_decides_is_right_at_other_values_or_refused(forward: Forward, tmp_path: Path) -> None:
    try:
        export(forward, tmp_path / "m.onnx")
    except GraphError:
        return
    for scale in (1e-3, 1.0, 300.0):
        x = scale * torch.randn(3, 3, 8, 8)
        with OnnxRuntimeSession(tmp_path / "m.onnx") as session, torch.no_grad():
            torch.testing.assert_close(
                session.infer({"image": x})["output"], Model(forward).eval()(x), rtol=1e-4, atol=1e-5
            )


def test_what_only_checks_is_no_decision(tmp_path: Path) -> None:
    def checks(x: torch.Tensor) -> torch.Tensor:
        assert x.max() < 1e9
        if x.min() < -1e9:
            raise ValueError("too small")
        if x.mean() > 1e6:
            warnings.warn("large", stacklevel=1)
            logger.warning("large")
            print("large")
        return x + 1

    export(checks, tmp_path / "m.onnx", "torchscript")


def test_torch_where_is_taken(tmp_path: Path) -> None:
    def where(x: torch.Tensor) -> torch.Tensor:
        return torch.where(x.amax((1, 2, 3), keepdim=True) > 1.5, x / 255, x)

    export(where, tmp_path / "m.onnx")
    for scale in (0.01, 100):
        x = scale * torch.randn(2, 3, 8, 8)
        with OnnxRuntimeSession(tmp_path / "m.onnx") as session, torch.no_grad():
            torch.testing.assert_close(
                session.infer({"image": x})["output"], Model(where).eval()(x), rtol=1e-5, atol=1e-5
            )


def test_torch_cond_is_taken(tmp_path: Path) -> None:
    class Cond(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return torch.cond(image.max() > 1.5, lambda x: x / 255, lambda x: x * 1.0, (image,))

    export(Cond(), tmp_path / "m.onnx")
    for scale in (0.01, 100):
        x = scale * torch.randn(2, 3, 8, 8)
        with OnnxRuntimeSession(tmp_path / "m.onnx") as session, torch.no_grad():
            torch.testing.assert_close(session.infer({"image": x})["output"], Cond()(x), rtol=1e-5, atol=1e-5)


def test_a_value_that_nobody_sees_being_taken_differs_in_a_second_trace() -> None:
    def hidden(x: torch.Tensor) -> torch.Tensor:
        import ctypes

        return x * ctypes.cast(x.data_ptr(), ctypes.POINTER(ctypes.c_float))[0]

    found = compare_traces(Model(hidden), IMAGE, {"B": 2})
    assert found.values == ()
    assert "with other values, a constant of prim::Constant" in found.differs


def test_sizes_and_weights_may_be_taken() -> None:
    class Fine(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.tensor(2.0), requires_grad=False)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            h = image.shape[2]
            if h % 2:
                image = image[:, :, 1:]
            rates = [x.item() for x in torch.linspace(0, 1, 3)]
            red, green, blue = image.unbind(1)
            return (red + green + blue) * float(self.scale) * rates[1] + int(h / 2) + len(image)

    found = compare_traces(Fine(), IMAGE, {"B": 2})
    assert found == Traced(sizes=found.sizes)
    assert [line.code for line in found.sizes][:1] == ["if h % 2:"]


def test_tensors_written_in_place_depend_on_what_is_written() -> None:
    def in_place(x: torch.Tensor) -> torch.Tensor:
        kept = torch.zeros(4)
        kept[1:][:2] = x[0, 0, 0, :2]
        untouched = torch.ones(2)
        int(untouched.sum())
        return x + int(kept.sum())

    seen = Seen()
    watched(Model(in_place), seen)(torch.ones(2, 3, 8, 8))
    assert [line.code for line in seen.values] == ["return x + int(kept.sum())"]


def test_other_operators_at_other_sizes_are_found() -> None:
    def threshold(x: torch.Tensor) -> torch.Tensor:
        return x + 1 if x.shape[0] > 3 else x

    others = [{"B": n} for n in (1, 3, 5)]
    assert compare_traces(Model(threshold), IMAGE, {"B": 2}, others=others).suspects == ({"B": 5},)


def test_without_torch_export_a_branch_on_a_size_is_found_by_traces(tmp_path: Path) -> None:
    """It is beyond the sizes that are compared anyway: only another trace tells."""

    class Hidden(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            if torch.compiler.is_exporting():
                raise TypeError("nothing for torch.export")
            return image.mean((1, 3)) * 2 if image.shape[2] in (21, 22, 23) else image.mean((1, 3))

    with pytest.raises(ExportMismatchError, match=r"differs from PyTorch at B=2, H=2[123]"):
        onnx_from_torch(
            Hidden(),
            tmp_path / "m.onnx",
            inputs=(TensorSpec(name="image", shape=("B", 3, "H", 8)),),
            outputs=["output"],
            ranges={"H": ShapeRange(min=8, opt=16, max=32)},
        )


def test_a_decision_that_is_skipped_while_exporting_is_named(tmp_path: Path) -> None:
    def skips(x: torch.Tensor) -> torch.Tensor:
        if not torch.compiler.is_compiling() and not torch.jit.is_tracing() and x.max() > 0:
            x = x * 2
        return x

    with pytest.raises(ExportMismatchError, match="it differs from PyTorch") as caught:
        export(skips, tmp_path / "m.onnx")
    assert "skips: `if not torch.compiler.is_compiling()" in caught.value.why
    assert "torch.where or torch.cond" in caught.value.do
