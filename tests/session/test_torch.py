from __future__ import annotations

import copy
import random
import warnings
from typing import Any, Literal

import numpy as np
import pytest
import torch

from trtship.errors import InputError
from trtship.session.torch import TorchSession
from trtship.spec import TensorSpec

INPUTS = (TensorSpec(name="x", shape=("B", 4)),)
OUTPUTS = (TensorSpec(name="y", shape=("B", 4)),)
X = np.random.default_rng(0).standard_normal((3, 4), dtype=np.float32)


def session(module: torch.nn.Module, **options: str) -> TorchSession:
    return TorchSession(module, inputs=INPUTS, outputs=OUTPUTS, **options)


def test_numpy_in_numpy_out_torch_in_torch_out() -> None:
    with session(torch.nn.ReLU()) as relu:
        from_numpy, from_torch = relu.infer({"x": X})["y"], relu.infer({"x": torch.from_numpy(X)})["y"]
    assert isinstance(from_numpy, np.ndarray)
    assert isinstance(from_torch, torch.Tensor)
    assert not from_torch.requires_grad
    np.testing.assert_array_equal(from_numpy, np.maximum(X, 0))
    np.testing.assert_array_equal(from_torch.numpy(), np.maximum(X, 0))


def test_the_module_is_in_eval_mode() -> None:
    with session(torch.nn.Dropout(0.5)) as dropout:
        np.testing.assert_array_equal(dropout.infer({"x": X})["y"], X)


@pytest.mark.parametrize("array", [X[::-1], X[:, ::-1], np.asfortranarray(X), np.broadcast_to(X[:1], X.shape)], ids=str)
def test_arrays_of_any_layout_are_taken_without_a_warning(array: np.ndarray) -> None:
    with warnings.catch_warnings(), session(torch.nn.ReLU()) as relu:
        warnings.simplefilter("error")
        np.testing.assert_array_equal(relu.infer({"x": array})["y"], np.maximum(array, 0))


def test_a_callers_array_is_not_written_to() -> None:
    x = X.copy()
    with session(torch.nn.ReLU(inplace=False)) as relu:
        relu.infer({"x": x})
    np.testing.assert_array_equal(x, X)


def test_float64_is_computed_in_a_widened_copy_and_given_as_the_specs_say() -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(4, 4)
    exact = copy.deepcopy(linear).double()(torch.from_numpy(X).double()).detach().numpy()
    wide = (TensorSpec(name="y", shape=("B", 4), dtype="float64"),)
    with TorchSession(linear, inputs=INPUTS, outputs=wide, dtype="float64") as one:
        np.testing.assert_array_equal(one.infer({"x": X})["y"], exact)
        assert "float64" in one.runtime
    with session(linear) as one:
        found = one.infer({"x": X})["y"]
        assert found.dtype == np.float32
        assert "float32" in one.runtime
    assert 0 < np.abs(found - exact).max() < 1e-6


PRECISIONS = ("highest", "high", "medium")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_products_are_full_fp32_whatever_was_set_and_that_stays(precision: str) -> None:
    """ "medium" lets PyTorch multiply in bfloat16 on CPUs that can: no reference to hold others against."""

    class Probe(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append((torch.backends.mkldnn.matmul.fp32_precision, torch.backends.cuda.matmul.fp32_precision))
            return x

    seen: list[tuple[str, str]] = []
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        places = torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.mkldnn.matmul
        held = [place.fp32_precision for place in places]
        with session(Probe()) as probe:
            probe.infer({"x": X})
        assert seen == [("ieee", "ieee")]
        assert [place.fp32_precision for place in places] == held
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)


def test_what_a_module_raises_leaves_the_precision_as_it_was() -> None:
    class Broken(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("no")

    before = torch.backends.mkldnn.matmul.fp32_precision
    with session(Broken()) as broken, pytest.raises(RuntimeError, match="no"):
        broken.infer({"x": X})
    assert torch.backends.mkldnn.matmul.fp32_precision == before


def test_several_inputs_go_by_position_and_outputs_by_name() -> None:
    class Two(torch.nn.Module):
        def forward(self, x: torch.Tensor, n: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x * n[:, None], n + 1

    inputs = (*INPUTS, TensorSpec(name="n", shape=("B",), dtype="int64"))
    outputs = (*OUTPUTS, TensorSpec(name="m", shape=("B",), dtype="int64"))
    with TorchSession(Two(), inputs=inputs, outputs=outputs) as two:
        found = two.infer({"n": np.array([1, 2, 3]), "x": X})
    np.testing.assert_array_equal(found["y"], X * np.array([[1], [2], [3]], np.float32))
    assert found["m"].tolist() == [2, 3, 4]


def test_a_closed_session_is_refused() -> None:
    relu = session(torch.nn.ReLU())
    relu.close()
    with pytest.raises(InputError, match="closed"):
        relu.infer({"x": X})


class Untidy(torch.nn.Module):
    """Writes to its input, its buffers and attributes, draws random numbers and changes what the process goes by."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = torch.nn.Linear(4, 4)
        self.norm = torch.nn.BatchNorm1d(4)
        self.register_buffer("phase", torch.polar(torch.ones(4), torch.arange(4.0)))
        self.register_buffer("origin", torch.tensor([1e8 + 1.0], dtype=torch.float64))
        self.register_buffer("last", torch.zeros(4))
        self.calls, self.cache = 0, {}
        self.linear.register_forward_hook(lambda module, inputs, output: output + 0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x.mul_(2)
        self.calls += 1
        self.cache[self.calls] = x
        self.last.copy_(x[0])
        torch.rand(1), np.random.rand(), random.random()
        torch.set_default_dtype(torch.float64)
        y = self.norm(self.linear(x))
        return (y * self.phase).abs() + ((y.double() + self.origin) - 1e8).float()


def everything(module: torch.nn.Module) -> dict[str, Any]:
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    parts = dict(module.named_modules())
    return {
        "tensors": {n: (t.dtype, t.device, t.requires_grad, t.data_ptr(), t.tolist()) for n, t in tensors.items()},
        "training": {name: part.training for name, part in parts.items()},
        "hooks": {name: dict(part._forward_hooks) for name, part in parts.items()},
        "others": (module.calls, dict(module.cache)),
        "process": (torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()),
        "default": (torch.get_default_dtype(), torch.is_grad_enabled()),
    }


@pytest.mark.parametrize("dtype", [None, "float64"])
def test_nothing_of_the_users_module_nor_of_the_process_changes(dtype: Literal["float64"] | None) -> None:
    module, feeds = Untidy().train(), {"x": X.copy()}
    before = everything(module)
    with TorchSession(module, inputs=INPUTS, outputs=OUTPUTS, dtype=dtype) as one:
        first = one.infer(feeds)["y"]
        np.testing.assert_array_equal(one.infer(feeds)["y"], first)
        tensor = torch.from_numpy(X.copy())
        np.testing.assert_array_equal(one.infer({"x": tensor})["y"].numpy(), first)
    assert everything(module) == before
    np.testing.assert_array_equal(feeds["x"], X)
    np.testing.assert_array_equal(tensor.numpy(), X)


def test_complex_and_float64_buffers_are_computed_with_as_they_are() -> None:
    module = Untidy()
    with torch.no_grad():
        expected = copy.deepcopy(module).eval()(torch.from_numpy(X.copy()))
    torch.set_default_dtype(torch.float32)  # the module sets another
    with session(module) as one:
        np.testing.assert_array_equal(one.infer({"x": X})["y"], expected.numpy())
        assert "float32 and complex64 and float64" in one.runtime


def test_an_output_that_is_a_buffer_is_not_written_to_by_the_next_run() -> None:
    class Last(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("last", torch.zeros(3, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last.copy_(x)

    with session(Last()) as last:
        first = last.infer({"x": X})["y"]
        last.infer({"x": X + 1})
    np.testing.assert_array_equal(first, X)


def test_a_forward_that_needs_gradients_gets_them() -> None:
    class Slope(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                return torch.autograd.grad((x**2).sum(), x)[0]

    with session(Slope()) as slope:
        np.testing.assert_array_equal(slope.infer({"x": X})["y"], 2 * X)
