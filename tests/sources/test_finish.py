"""What loading makes of a user's module: a private copy with its own dtypes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from trtship.errors import SourceError, SpecError
from trtship.progress import SILENT
from trtship.sources.finish import finish
from trtship.sources.loaded import LoadedModel
from trtship.spec import TensorSpec

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))


def load(module: nn.Module, text: str = "x=Bx4") -> LoadedModel:
    return finish("net.py:net", module, (TensorSpec.parse(text),), progress=SILENT)


def dtypes(module: nn.Module) -> set[str]:
    return {str(p.dtype).removeprefix("torch.") for p in module.parameters()}


class Net(nn.Module):
    def __init__(self, **buffers: torch.Tensor) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lin, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)
        for name, value in buffers.items():
            self.register_buffer(name, value)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.lin(x))


class Counting(Net):
    """Its forward leaves something behind in a buffer, an attribute and, in training mode, in batch statistics."""

    def __init__(self) -> None:
        super().__init__(count=torch.zeros(1))
        self.seen: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count += 1
        self.seen.append(x)
        return super().forward(x)


def test_the_users_module_and_the_loaded_one_are_as_before_the_first_run() -> None:
    module = Counting().train()
    module.lin.weight.requires_grad_(False)
    handle = module.lin.register_forward_hook(lambda module, inputs, output: output)
    before = copy.deepcopy(module.state_dict())
    flags = [(p.training, [q.requires_grad for q in p.parameters()]) for p in module.modules()]
    numbers = torch.get_rng_state()
    loaded = load(module).module
    assert [(p.training, [q.requires_grad for q in p.parameters()]) for p in module.modules()] == flags
    for state in (module.state_dict(), loaded.state_dict()):
        assert all(torch.equal(state[name], tensor) for name, tensor in before.items())
        assert all(state[name].dtype == tensor.dtype for name, tensor in before.items())
    assert module.seen == loaded.seen == []
    assert list(module.lin._forward_hooks) == [handle.id]
    assert torch.equal(torch.get_rng_state(), numbers)
    assert not any(p.training for p in loaded.modules())
    assert not any(p.requires_grad for p in loaded.parameters())


@pytest.mark.parametrize(
    "buffer",
    [
        torch.polar(torch.ones(4), torch.arange(4.0)),
        torch.tensor([1e8 + 1.0], dtype=torch.float64),
        torch.full((4,), 0.1).half(),
        torch.arange(4),
        torch.ones(4, dtype=torch.bool),
    ],
    ids=lambda buffer: str(buffer.dtype),
)
def test_buffers_keep_their_dtype_and_every_bit(buffer: torch.Tensor) -> None:
    loaded = load(Net(kept=buffer))
    assert loaded.module.kept.dtype == buffer.dtype
    assert torch.equal(loaded.module.kept, buffer)
    assert loaded.notes == ()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("declared", ["", ":float16", ":bfloat16"])
def test_a_half_module_is_widened_to_float32_and_a_note_says_so(dtype: torch.dtype, declared: str) -> None:
    module = Net().to(dtype)
    module.register_buffer("phase", torch.polar(torch.ones(4), torch.arange(4.0)))
    loaded = load(module, f"x=Bx4{declared}")
    assert dtypes(module) == {str(dtype).removeprefix("torch.")}  # the user's is left
    assert dtypes(loaded.module) == {"float32"}
    assert len(loaded.notes) == 1
    assert "widened to float32" in loaded.notes[0]
    given = X.to(getattr(torch, declared[1:])) if declared else X
    plain = Net().float()
    plain.load_state_dict({name: value.float() for name, value in module.state_dict().items() if name != "phase"})
    with torch.no_grad():
        assert torch.equal(loaded.module(given), plain.eval()(given.float()))
    assert loaded.module.module.phase.imag.abs().max() > 0


def test_a_half_module_whose_code_insists_on_half_runs_as_it_is() -> None:
    class Insists(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(4, 4).half()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.lin(x.half()).float()

    loaded = load(Insists())
    assert dtypes(loaded.module) == {"float16"}
    assert loaded.notes == ()


def test_half_and_float32_parameters_that_run_together_stay_as_they_are() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin, self.scale = nn.Linear(4, 4), nn.Parameter(torch.full((4,), 0.1).half())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.lin(x) * self.scale

    assert dtypes(load(Mixed()).module) == {"float16", "float32"}


def test_half_and_float32_parameters_that_do_not_run_together_are_widened() -> None:
    loaded = load(nn.Sequential(nn.Linear(4, 4).half(), nn.LayerNorm(4)))
    assert dtypes(loaded.module) == {"float32"}
    assert "float16 parameters are widened" in loaded.notes[0]


def test_a_float64_module_is_not_narrowed_but_refused_for_a_float32_input() -> None:
    with pytest.raises(SpecError, match="cannot be run") as refusal:
        load(Net().double())
    assert "float64" in refusal.value.why
    assert ".float()" in refusal.value.do
    assert dtypes(load(Net().double(), "x=Bx4:float64").module) == {"float64"}


def test_complex_outputs_are_refused_with_the_remedy() -> None:
    class Complex(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.complex(x, x)

    with pytest.raises(SourceError, match="complex64") as refusal:
        load(Complex())
    assert "view_as_real" in refusal.value.do


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_programs_of_torchscript_torch_export_and_torch_compile_load() -> None:
    def exported() -> Any:
        return torch.export.export(Net().eval(), (X,), dynamic_shapes=({0: torch.export.Dim("B")},)).module()

    with torch.no_grad():
        expected = Net().eval()(X)
        for module in (torch.jit.script(Net().eval()), exported(), torch.compile(Net())):
            loaded = load(module)
            torch.testing.assert_close(loaded.module(X), expected)
            assert not any(p.requires_grad for p in loaded.module.parameters())
    assert type(load(torch.compile(Net())).module) is Net


@pytest.mark.parametrize("empty", [nn.LazyLinear(4), nn.Linear(4, 4, device="meta")], ids=["lazy", "meta"])
def test_parameters_without_values_are_refused(empty: nn.Module) -> None:
    with pytest.raises(SourceError, match=r"has no weights in 0\.weight"):
        load(nn.Sequential(empty))
