from __future__ import annotations

import copy
import warnings

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
