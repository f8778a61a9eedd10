"""Faults of the original itself are found before it is exported, and told from rounding."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from trtship.errors import SourceError
from trtship.export import graph_from_source
from trtship.export.original import ROWS_DEPEND, TWO_WAYS, check_original
from trtship.progress import SILENT
from trtship.session.onnxruntime import OnnxRuntimeSession
from trtship.sources.finish import finish
from trtship.sources.loaded import LoadedModel
from trtship.spec import TensorSpec

Body = Callable[[Any, torch.Tensor], Any]


class Net(nn.Module):
    """A small classifier, `body` between its features [B, 8] and its head."""

    def __init__(self, body: Body = lambda net, x: x, **parts: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.c, self.h = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 5)
        self.body, self.calls, self.kept = body, 0, None
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, image: torch.Tensor) -> Any:
        return self.h(self.body(self, self.c(image).mean((2, 3))))


def load(module: nn.Module, *inputs: str) -> LoadedModel:
    specs = tuple(TensorSpec.parse(text) for text in inputs or ["image=Bx3x16x16"])
    return finish("net.py:net", module, specs, progress=SILENT)


def check(module: nn.Module, *inputs: str, **sizes: int) -> None:
    check_original(load(module, *inputs), traced={"B": 2, **sizes})


def refusal(module: nn.Module, *inputs: str) -> SourceError:
    with pytest.raises(SourceError) as found:
        check(module, *inputs)
    assert found.value.do
    return found.value


class AlwaysTraining(Net):
    """Its parts stay in training mode, whatever the model's mode is."""

    def train(self, mode: bool = True) -> AlwaysTraining:
        super().train(mode)
        for part in self.children():
            part.train()
        return self


def count(net: Net, x: torch.Tensor) -> torch.Tensor:
    net.calls += 1
    return x * net.calls


def alternate(net: Net, x: torch.Tensor) -> torch.Tensor:
    net.calls += 1
    return x * (1 + net.calls % 2)


def remember_the_first(net: Net, x: torch.Tensor) -> torch.Tensor:
    if net.kept is None:
        net.kept = x.detach()[:1].clone()
    return x - net.kept


def remember_the_shape(net: Net, x: torch.Tensor) -> torch.Tensor:
    if net.kept is None:
        net.kept = torch.ones_like(x)
    return x * net.kept


def update_a_buffer(net: Any, x: torch.Tensor) -> torch.Tensor:
    net.bank.mul_(0.9).add_(0.1 * x.mean(0))
    return x + net.bank


CALLS = [0]


def count_outside(net: Net, x: torch.Tensor) -> torch.Tensor:
    CALLS[0] += 1
    return x * CALLS[0]


RANDOM: dict[str, tuple[nn.Module, str]] = {
    "F.dropout": (Net(lambda net, x: F.dropout(x, 0.1)), "dropout in test_original.py"),
    "nn.Dropout in training mode": (AlwaysTraining(lambda net, x: net.drop(x), drop=nn.Dropout(0.2)), "drop still"),
    "noise": (Net(lambda net, x: x + 0.01 * torch.randn_like(x)), "randn_like in test_original.py"),
    "attention's dropout": (
        Net(lambda net, x: F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None], dropout_p=0.3)[:, 0]),
        "bernoulli_ in test_original.py",
    ),
    "numpy": (Net(lambda net, x: x + float(np.random.rand())), "numpy.random"),
    "Python, rarely": (Net(lambda net, x: x * (2.0 if random.random() < 0.2 else 1.0)), "random draws"),
    "a counter": (Net(count), "calls of the module"),
    "every second call": (Net(alternate), "calls of the module"),
    "the first input": (Net(remember_the_first), "kept of the module"),
    "the first shape": (Net(remember_the_shape), "fails on one that it takes at first"),
    "a buffer": (Net(update_a_buffer, bank=nn.Buffer(torch.zeros(8))), "bank of the module"),
    "a global": (Net(count_outside), "no random numbers and no change"),
}


@pytest.mark.parametrize("name", RANDOM)
def test_a_model_that_answers_in_two_ways_is_reported_with_the_cause(name: str) -> None:
    module, cause = RANDOM[name]
    error = refusal(module)
    assert error.what == TWO_WAYS
    assert cause in error.why


def test_random_numbers_that_do_not_matter_are_not_blamed() -> None:
    def draw(net: Net, x: torch.Tensor) -> torch.Tensor:
        torch.rand(3)
        return x

    check(Net(draw))
    error = refusal(Net(lambda net, x: count(net, draw(net, x))))
    assert "calls of the module" in error.why


def halved(net: Net, x: torch.Tensor) -> torch.Tensor:
    while x.norm() > 0.01:
        x = x / 1.1
    return x


DEPENDENT: dict[str, tuple[nn.Module, str]] = {
    "batch norm without statistics": (
        Net(lambda net, x: net.norm(x), norm=nn.BatchNorm1d(8, track_running_stats=False)),
        "norm normalizes with the statistics of the batch",
    ),
    "batch norm in training mode": (AlwaysTraining(lambda net, x: net.norm(x), norm=nn.BatchNorm1d(8)), "norm norm"),
    "softmax": (Net(lambda net, x: x.softmax(0)), "softmax in test_original.py"),
    "mean": (Net(lambda net, x: x - x.mean(0, keepdim=True)), "in test_original.py"),
    "norm": (Net(lambda net, x: F.normalize(x, dim=0)), "normalize in test_original.py"),
    "sort": (Net(lambda net, x: x.sort(0).values), "sort in test_original.py"),
    "neighbour": (Net(lambda net, x: torch.roll(x, 1, 0)), "roll in test_original.py"),
    "place": (Net(lambda net, x: x * torch.arange(1, len(x) + 1)[:, None]), "mul in test_original.py"),
    "size": (Net(lambda net, x: x * len(x)), "only the number of rows matters"),
    "a decision": (
        Net(lambda net, x: x * 2 if x[0].sum() > 0 else x),
        "values of the batch become Python numbers at test_original.py",
    ),
    "a number": (Net(lambda net, x: x * float(x[0, 0])), "values of the batch become Python numbers at test_original"),
    "a loop": (Net(halved), "values of the batch become Python numbers at test_original.py"),
    "a little": (Net(lambda net, x: x + 1e-3 * x.mean(0)), "add in test_original.py"),
}


@pytest.mark.parametrize("name", DEPENDENT)
def test_rows_that_depend_on_each_other_are_reported_with_the_cause(name: str) -> None:
    module, cause = DEPENDENT[name]
    error = refusal(module)
    assert error.what == ROWS_DEPEND
    assert "logits" in error.why
    assert cause in error.why


class EvenOnly(Net):
    def forward(self, image: torch.Tensor) -> Any:
        if image.shape[2] % 2:
            raise ValueError("even sizes only")
        return super().forward(image)


def test_a_model_that_fails_at_the_traced_sizes_is_reported_as_that() -> None:
    with pytest.raises(SourceError, match="the model itself fails at B=2, H=15, W=16") as found:
        check(EvenOnly(), "image=Bx3xHxW", H=15, W=16)
    assert found.value.why == "ValueError: even sizes only"
    check(EvenOnly(), "image=Bx3xHxW", H=16, W=15)


def cached_by_size(net: Net, x: torch.Tensor) -> torch.Tensor:
    net.kept = net.kept or {}
    return x * net.kept.setdefault(len(x), torch.full((len(x), 1), 2.0))


def long_sum(net: Net, x: torch.Tensor) -> torch.Tensor:
    """A sum that cancels: its rounding is far beyond the inputs'."""
    return x + (x.repeat(1, 4000) * torch.linspace(-1, 1, 32000)).sum(1, keepdim=True)


SOUND: dict[str, nn.Module] = {
    "plain": Net(),
    "dropout modules in eval mode": Net(lambda net, x: net.drop(x), drop=nn.Dropout(0.5)),
    "batch norm": Net(lambda net, x: net.norm(x), norm=nn.BatchNorm1d(8)),
    "a cache that answers the same": Net(cached_by_size),
    "float32 within": Net(lambda net, x: (30 * x.float()).softmax(-1, dtype=torch.float32).to(x.dtype)),
    "an amplifier of rounding": Net(lambda net, x: ((1e4 * x).sin() + 1e4) - 1e4),
    "a long sum": Net(long_sum),
    "a class": nn.Sequential(Net(), nn.Softmax(1), type("Top", (nn.Module,), {"forward": lambda s, x: x.argmax(1)})()),
    "NaN": Net(lambda net, x: x / 0 * 0),
    "only batches of 2": Net(lambda net, x: x.view(2, 8)),
}


@pytest.mark.parametrize("name", SOUND)
def test_rounding_and_what_cannot_be_told_here_are_left(name: str) -> None:
    check(SOUND[name])


def test_a_fixed_batch_and_outputs_without_a_batch_are_left() -> None:
    class Three(Net):
        def forward(self, image: torch.Tensor) -> Any:
            x = super().forward(image)
            return {"logits": x, "scale": x.new_tensor(3.0), "table": self.h.weight * 2, "sum": x.sum()}

    check(Three())
    check(Net(lambda net, x: x - x.mean(0)), "image=4x3x16x16")
    error = refusal(Net(lambda net, x: F.dropout(x, 0.1)), "image=4x3x16x16")
    assert error.what == TWO_WAYS


def test_the_batch_is_found_on_other_axes_and_inputs_without_it_are_shared() -> None:
    class Steps(nn.Module):
        def __init__(self, axis: int) -> None:
            super().__init__()
            self.axis = axis

        def forward(self, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
            mixed = b - b.mean(self.axis, keepdim=True)  # [L, B, 4]
            return mixed * a[None] + c

    inputs = ("a=Bx4", "b=LxBx4", "c=4")
    check(Steps(0), *inputs, L=5)
    model = load(Steps(1), *inputs)
    with pytest.raises(SourceError, match="rows of a batch depend"):
        check_original(model, traced={"B": 2, "L": 5})


def test_the_model_and_the_process_are_as_before() -> None:
    module = Net(update_a_buffer, bank=nn.Buffer(torch.zeros(8)))
    model, numbers = load(module), torch.get_rng_state()
    with pytest.raises(SourceError):
        check_original(model, traced={"B": 2})
    for one in (module, model.module):
        assert one.bank.abs().max() == 0
    assert torch.equal(torch.get_rng_state(), numbers)
    assert torch.get_default_dtype() == torch.float32


def optics(net: Any, image: torch.Tensor) -> torch.Tensor:
    return (image[:, :1] * net.mask).abs().mean((2, 3))


def exact(net: Any, image: torch.Tensor) -> torch.Tensor:
    return ((image.mean((2, 3)).double() + net.origin) - 1e8).float()


def rope(net: Any, image: torch.Tensor) -> torch.Tensor:
    x = torch.view_as_complex(image.reshape(image.shape[0], 3, -1, 2).contiguous()) * net.turns
    return torch.view_as_real(x).flatten(2).mean(2)


def in_place(net: Any, image: torch.Tensor) -> torch.Tensor:
    return image.sub_(0.5).div_(0.25).mean((2, 3))


class Pixels(nn.Module):
    def __init__(self, body: Body) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.body, self.head = body, nn.Linear(3, 5)
        self.register_buffer("mask", torch.polar(torch.rand(3, 8, 8), 3 * torch.rand(3, 8, 8)))
        self.register_buffer("origin", torch.tensor([1e8 + 1.0], dtype=torch.float64))
        self.register_buffer("turns", torch.polar(torch.ones(32), torch.arange(32.0)))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self, image))


@pytest.mark.parametrize("body", [optics, exact, rope, in_place], ids=lambda body: body.__name__)
def test_the_dynamo_exporters_graph_is_right_by_the_untouched_model(body: Body, tmp_path: Path) -> None:
    model = load(Pixels(body), "image=Bx3x8x8")
    report = graph_from_source(model, tmp_path / "m.onnx", ranges={})
    assert (report.exporter, report.fell_back) == ("dynamo", "")


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.c = nn.Conv2d(3, 8, 4, 4)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.c(image).mean((2, 3))


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_scripted_and_exported_programs_go_through_the_exporter_that_takes_them(tmp_path: Path) -> None:
    scripted = load(torch.jit.script(Plain().eval()))
    assert graph_from_source(scripted, tmp_path / "s.onnx", ranges={}).exporter == "torchscript"
    traced = load(torch.jit.trace(Plain().eval(), torch.randn(2, 3, 16, 16)))
    assert graph_from_source(traced, tmp_path / "t.onnx", ranges={}).exporter == "torchscript"
    batch = ({0: torch.export.Dim("B")},)
    program = torch.export.export(Plain().eval(), (torch.randn(2, 3, 16, 16),), dynamic_shapes=batch)
    assert graph_from_source(load(program.module()), tmp_path / "e.onnx", ranges={}).exporter == "dynamo"


class DecidesAlone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.c = nn.Conv2d(3, 8, 4, 4)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.c(image).mean((2, 3))
        if bool(image.max() > 50.0):
            x = -x
        return x


class Holds(nn.Module):
    """A scripted part, and a scripted function, within ordinary Python."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part, self.double = part, torch.jit.script(double)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.double(self.part(image))}


def double(x: torch.Tensor) -> torch.Tensor:
    if bool(x.max() > 1e6):
        return x
    return x * 2


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_scripted_part_keeps_its_decisions(tmp_path: Path) -> None:
    module = Holds(torch.jit.script(DecidesAlone().eval())).eval()
    graph_from_source(load(module), tmp_path / "h.onnx", ranges={})
    with OnnxRuntimeSession(tmp_path / "h.onnx") as session, torch.no_grad():
        for scale in (1.0, 100.0):
            image = scale * torch.rand(1, 3, 16, 16)
            torch.testing.assert_close(session.infer({"image": image})["logits"], module(image)["logits"])
