"""Tensors that are not simply memory: the right result, or an InputError; never a wrong number, never a crash."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from graphs import model_of
from trtship.errors import InputError, OutputError
from trtship.session.onnxruntime import OnnxRuntimeSession

X = torch.arange(8.0).reshape(2, 4)


@pytest.fixture(scope="module")
def session() -> Iterator[OnnxRuntimeSession]:
    model = model_of("(float[B, 4] x) => (float[B, 4] y) { y = Identity(x) }")
    with OnnxRuntimeSession(model.SerializeToString()) as opened:
        yield opened


class Lender:
    """An array of another package, whose memory is a torch tensor's."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor

    def __dlpack__(self, **asked: Any) -> Any:
        return self._tensor.__dlpack__(**asked)

    def __dlpack_device__(self) -> Any:
        return self._tensor.__dlpack_device__()


class Plain(torch.Tensor):
    """A subclass that changes nothing."""


class Wrapper(torch.Tensor):
    """A subclass that carries out operators itself, and has no memory."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Wrapper:
        made = torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*[one.inner if isinstance(one, Wrapper) else one for one in args], **(kwargs or {}))


def fake() -> torch.Tensor:
    with FakeTensorMode() as mode:
        return mode.from_tensor(X)


RIGHT: dict[str, tuple[Callable[[], Any], Any]] = {
    "a sign that is put off": (lambda: torch._neg_view(X), -X),
    "a sign that is put off, twice": (lambda: torch._neg_view(torch._neg_view(X)), X),
    "a sign that is put off, of some rows": (lambda: torch._neg_view(torch.cat([X, X]))[1:3], -torch.cat([X, X])[1:3]),
    "the imaginary part of a conjugate": (lambda: torch.complex(torch.zeros(2, 4), X).conj().imag, -X),
    "a dense imaginary part": (lambda: torch.view_as_real(torch.complex(X, X).conj().resolve_conj())[..., 1], -X),
    "a conjugate's imaginary part, by DLPack": (lambda: Lender(torch._neg_view(X)), -X),
    "by DLPack": (lambda: Lender(X), X),
    "a parameter": (lambda: torch.nn.Parameter(X), X),
    "with a gradient": (lambda: X.clone().requires_grad_() * 1, X),
    "of inference mode": (lambda: torch.inference_mode()(lambda: X * 1)(), X),
    "one row for all": (lambda: X[0].expand(2, 4), X[0].expand(2, 4)),
    "one number for all": (lambda: torch.tensor(3.0).expand(2, 4), torch.full((2, 4), 3.0)),
    "transposed": (lambda: X.t().contiguous().t(), X),
    "every other column": (lambda: torch.stack([X, X], dim=2)[..., 0], X),
    "overlapping rows": (lambda: torch.arange(5.0).as_strided((2, 4), (1, 1)), [[0, 1, 2, 3], [1, 2, 3, 4]]),
    "a plain subclass": (lambda: X.as_subclass(Plain), X),
    "numpy, backwards": (lambda: X.numpy()[::-1, ::-1], X.flip(0, 1)),
    "numpy, one row for all": (lambda: np.broadcast_to(X.numpy()[0], (2, 4)), X[0].expand(2, 4)),
    "numpy, at an odd address": (
        lambda: np.frombuffer(b"\0" + X.numpy().tobytes(), np.uint8)[1:].view(np.float32).reshape(2, 4),
        X,
    ),
    "numpy, read-only": (lambda: np.frombuffer(X.numpy().tobytes(), np.float32).reshape(2, 4), X),
    "numpy, a matrix": (lambda: np.asmatrix(X.numpy()), X),
    "numpy, Fortran's order": (lambda: np.asfortranarray(X.numpy()), X),
}


@pytest.mark.parametrize("name", RIGHT)
def test_it_is_computed_with_the_values_that_it_has(session: OnnxRuntimeSession, name: str) -> None:
    make, wanted = RIGHT[name]
    for _ in range(2):  # the second call finds what the first one learnt
        found = session.infer({"x": make()})["y"]
        assert np.array_equal(np.asarray(found), np.asarray(wanted))


REFUSED: dict[str, Callable[[], Any]] = {
    "complex": lambda: torch.complex(X, X).conj(),
    "sparse": lambda: X.to_sparse(),
    "sparse rows": lambda: X.to_sparse_csr(),
    "quantized": lambda: torch.quantize_per_tensor(X, 1.0, 0, torch.quint8),
    "nested": lambda: torch.nested.nested_tensor([X[0], X[1]]),
    "jagged": lambda: torch.nested.nested_tensor([X[0], X[1]], layout=torch.jagged),
    "meta": lambda: X.to("meta"),
    "mkldnn": lambda: X.to_mkldnn(),
    "fake": fake,
    "a wrapper": lambda: Wrapper(X),
    "numpy, the other byte order": lambda: X.numpy().astype(X.numpy().dtype.newbyteorder()),
    "numpy, 128 bits": lambda: X.numpy().astype(np.longdouble),
    "numpy, fields": lambda: np.zeros((2, 4), [("a", np.float32)]),
    "numpy, records": lambda: np.zeros((2, 4), [("a", np.float32)]).view(np.recarray),
    "numpy, masked": lambda: np.ma.masked_array(X.numpy(), mask=X.numpy() > 2),
    "numpy, objects": lambda: X.numpy().astype(object),
    "numpy, dates": lambda: np.zeros((2, 4), "M8[s]"),
    "numpy, text": lambda: np.zeros((2, 4), "U3"),
    "a list": lambda: X.tolist(),
    "a memoryview": lambda: memoryview(X.numpy()),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused(session: OnnxRuntimeSession, name: str) -> None:
    session.infer({"x": X})  # a tensor of the same type, shape and place was taken before
    session.infer({"x": X.numpy()})
    with pytest.raises(InputError) as caught:
        session.infer({"x": REFUSED[name]()})
    assert caught.value.why
    assert caught.value.do


def test_a_file_that_is_mapped_is_read(session: OnnxRuntimeSession, tmp_path: Path) -> None:
    X.numpy().tofile(tmp_path / "x")
    mapped = np.memmap(tmp_path / "x", np.float32, "r", shape=(2, 4))
    assert np.array_equal(session.infer({"x": mapped})["y"], X.numpy())


@pytest.mark.parametrize("transform", [torch.vmap, torch.func.grad, torch.func.functionalize])
def test_within_a_transformation_it_is_refused(session: OnnxRuntimeSession, transform: Any) -> None:
    def inner(tensor: torch.Tensor) -> torch.Tensor:
        with pytest.raises(InputError, match="no memory of its own"):
            session.infer({"x": tensor})
        return tensor.sum()

    session.infer({"x": X})
    transform(inner)(torch.stack([X, X]) if transform is torch.vmap else X)


def test_results_are_not_written_where_a_sign_is_put_off(session: OnnxRuntimeSession) -> None:
    with pytest.raises(OutputError):
        session.infer({"x": X}, out=torch._neg_view(torch.zeros(2, 4)))
    with pytest.raises(OutputError):
        session.infer({"x": X}, out=torch.zeros(4).expand(2, 4))
