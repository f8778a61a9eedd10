from __future__ import annotations

import functools
import random
import threading
import types
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from trtship.errors import SourceError
from trtship.session.module_copy import convert, copy_module, widen
from trtship.session.torch_state import unchanged_state

X = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.c, self.h = nn.Conv2d(3, 4, 2, 2), nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.h(self.c(x).mean((2, 3)))


def plain() -> nn.Module:
    return Net()


def closure() -> nn.Module:
    net = Net()
    before = net.forward
    net.forward = lambda x: before(x) * 2  # type: ignore[method-assign]
    return net


def closure_in_a_closure() -> nn.Module:
    net = Net()

    def doubled(forward: Any) -> Any:
        def run(x: torch.Tensor) -> Any:
            return forward(x) * 2

        return run

    net.forward = doubled(doubled(net.forward))  # type: ignore[method-assign]
    return net


def bound_method() -> nn.Module:
    net = Net()
    net.forward = types.MethodType(lambda self, x: Net.forward(self, x) + 1, net)  # type: ignore[method-assign]
    return net


def partial() -> nn.Module:
    net = Net()
    net.forward = functools.partial(Net.forward, net)  # type: ignore[method-assign]
    return net


def default_argument() -> nn.Module:
    net = Net()

    def hook(module: Any, inputs: Any, output: Any, head: nn.Module = net.h) -> Any:
        return output + head.bias.sum()  # type: ignore[operator, union-attr]

    net.c.register_forward_hook(hook)
    return net


def hook_with_a_handle() -> nn.Module:
    net = Net()
    net.handle = net.c.register_forward_hook(lambda module, inputs, output: output * 1.5)  # type: ignore[assignment]
    return net


class Child(nn.Module):
    def __init__(self, parent: nn.Module) -> None:
        super().__init__()
        self.parent = weakref.ref(parent)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parent: Any = self.parent()
        return parent.h(parent.c(x).mean((2, 3)))


class Parent(Net):
    def __init__(self) -> None:
        super().__init__()
        self.child = Child(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.child(x)


def locks_and_modules() -> nn.Module:
    net = Net()
    net.lock, net.functional = threading.Lock(), nn.functional  # type: ignore[assignment]
    return net


def computed_tensors() -> nn.Module:
    net = Net()
    net.twice, net.more = net.c.weight * 2, {"bias": [net.c.bias * 2]}  # type: ignore[operator, assignment]
    return net


def old_weight_norm() -> nn.Module:
    net = Net()
    net.c = torch.nn.utils.weight_norm(net.c)
    return net


def weight_norm() -> nn.Module:
    net = Net()
    parametrizations.weight_norm(net.c)
    return net


def spectral_norm() -> nn.Module:
    net = Net()
    parametrizations.spectral_norm(net.c)
    return net


def pruned() -> nn.Module:
    net = Net()
    prune.l1_unstructured(net.c, "weight", 0.3)
    return net


def scripted() -> nn.Module:
    return torch.jit.script(Net().eval())


def traced() -> nn.Module:
    return torch.jit.trace(Net().eval(), X)


def exported() -> nn.Module:
    return torch.export.export(Net().eval(), (X,)).module()


KINDS = [
    plain,
    closure,
    closure_in_a_closure,
    bound_method,
    partial,
    default_argument,
    hook_with_a_handle,
    Parent,
    locks_and_modules,
    computed_tensors,
    old_weight_norm,
    weight_norm,
    spectral_norm,
    pruned,
    scripted,
    traced,
    exported,
]


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
def test_a_copy_answers_as_the_module_and_shares_nothing_with_it(make: Callable[[], nn.Module]) -> None:
    module = make()
    if make is not exported:
        module.eval()
    with torch.no_grad():
        expected = module(X)
        copied = copy_module(module)
        assert torch.equal(copied(X), expected)
        for parameter in copied.parameters():
            parameter.zero_()
        assert not torch.equal(copied(X), expected)  # it computes with its own parameters
        assert torch.equal(module(X), expected)
        wide = widen(copy_module(module))(X.double())
    assert wide.dtype == torch.float64
    assert 0 < (wide - expected).abs().max() < 1e-6  # what float32 rounded, float64 does not


def test_what_a_hook_closes_over_is_not_changed_by_runs_of_the_copy() -> None:
    seen: list[torch.Tensor] = []
    count = 0

    def hook(module: Any, inputs: Any, output: Any) -> None:
        nonlocal count
        count += 1
        seen.append(output)

    net = Net()
    net.c.register_forward_hook(hook)
    copied = copy_module(net)
    copied(X)
    assert (count, seen) == (0, [])
    net(X)
    assert (count, len(seen)) == (1, 1)


@pytest.mark.parametrize("held", [(n for n in range(3)), open], ids=["generator", "file"])
def test_a_module_that_cannot_be_copied_is_refused_with_the_attributes_name(held: Any, tmp_path: Any) -> None:
    net = Net()
    (tmp_path / "f").touch()
    with open(tmp_path / "f") as file:
        net.c.source = file if held is open else held
        with pytest.raises(SourceError, match=r"cannot be copied") as refusal:
            copy_module(net)
    assert "c.source" in refusal.value.why
    assert refusal.value.do


def test_widening_takes_real_to_float64_and_complex_to_complex128_and_narrows_nothing() -> None:
    net = Net()
    kept = {"n": torch.arange(3), "mask": torch.ones(2, dtype=torch.bool), "b": torch.ones(2, dtype=torch.uint8)}
    digits = torch.tensor([1e8 + 1.0], dtype=torch.float64)
    phase = torch.polar(torch.ones(3), torch.arange(3.0))
    for name, tensor in {**kept, "digits": digits, "phase": phase, "short": torch.ones(2).half()}.items():
        net.register_buffer(name, tensor)
    net.plain, net.several = torch.ones(2), [torch.ones(2), {"phase": phase}]  # type: ignore[assignment]
    wide = widen(copy_module(net))
    assert {str(p.dtype) for p in wide.parameters()} == {"torch.float64"}
    assert all(torch.equal(getattr(wide, name), tensor) for name, tensor in kept.items())
    assert all(getattr(wide, name).dtype == tensor.dtype for name, tensor in kept.items())
    assert torch.equal(wide.digits, digits)
    assert wide.phase.dtype == wide.several[1]["phase"].dtype == torch.complex128
    assert torch.equal(wide.phase, phase.to(torch.complex128))
    assert wide.short.dtype == wide.plain.dtype == wide.several[0].dtype == torch.float64
    assert net.plain.dtype == torch.float32


def test_tied_parameters_stay_tied() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = net[0].weight
    wide = widen(copy_module(net))
    assert wide[0].weight.data_ptr() == wide[1].weight.data_ptr() != net[0].weight.data_ptr()


def test_only_the_dtypes_that_are_named_are_converted() -> None:
    net = Net()
    net.register_buffer("phase", torch.polar(torch.ones(3), torch.arange(3.0)))
    low = convert(copy_module(net), {torch.float32: torch.float16})
    assert low.c.weight.dtype == torch.float16
    assert torch.equal(low.phase, net.phase)


def test_the_processs_state_is_restored_also_after_an_error() -> None:
    def state() -> tuple[Any, ...]:
        cudnn = torch.backends.cudnn
        numbers: Any = np.random.get_state()
        return (
            torch.get_rng_state().tolist(),
            numbers[1].tolist(),
            random.getstate(),
            torch.get_default_dtype(),
            torch.is_grad_enabled(),
            torch.are_deterministic_algorithms_enabled(),
            (cudnn.enabled, cudnn.benchmark, cudnn.deterministic),
        )

    before = state()

    def change() -> None:
        _ = torch.rand(3), np.random.rand(3), random.random()
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = not torch.backends.cudnn.benchmark
        assert state() != before
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"), unchanged_state(torch):
        change()
    assert state() == before
