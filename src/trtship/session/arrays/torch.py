"""torch tensors, on the host and on the GPU: on the caller's current stream."""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from trtship.errors import InputError
from trtship.session.arrays.base import Array, Facts, Kind, numpy_dtype

if TYPE_CHECKING:
    from trtship.session.cuda import Cuda


class Torch(Kind):
    name = "a torch tensor"

    def __init__(self) -> None:
        self._torch: Any = sys.modules["torch"]  # somebody made a tensor
        self._empty: Callable[..., Any] = self._torch.empty
        # what `torch.cuda.current_stream(index).cuda_stream` gives, without a Stream object in between
        raw = getattr(self._torch._C, "_cuda_getCurrentRawStream", None)
        self._stream: Callable[[int], int] = raw or (lambda index: self._torch.cuda.current_stream(index).cuda_stream)
        self._devices: dict[int, Any] = {}
        self._transformation: Callable[[], Any] = self._torch._C._functorch.peek_interpreter_stack

    def claims(self, array: Array) -> bool:
        return isinstance(array, self._torch.Tensor)

    def key(self, array: Array) -> Hashable:
        if self._transformation() is not None:  # tensors of the same key may have no memory: asked of each
            raise _no_memory(array, "a transformation of torch.func is at work")
        return array.dtype, array.shape, array.device, array.layout, type(array)

    def facts(self, array: Array) -> Facts:
        if array.is_nested or self._stands_for_another(array):
            raise _no_memory(array, "its elements lie in other tensors, or nowhere")
        dtype = str(array.dtype).removeprefix("torch.")
        if array.layout is not self._torch.strided:
            dtype += f" ({str(array.layout).removeprefix('torch.')})"  # no dtype that any input has
        return Facts(dtype, tuple(array.shape), array.device.type, array.device.index or 0)

    def _stands_for_another(self, array: Array) -> bool:
        """Whether operators are carried out by its class (fake and distributed tensors), or by a transformation
        (`torch.vmap`): then it has no memory of its own that could be read."""
        torch = self._torch
        own = type(array).__torch_dispatch__ != torch.Tensor.__torch_dispatch__
        return bool(own or torch._C._functorch.is_functorch_wrapped_tensor(array) or torch._is_functional_tensor(array))

    def is_contiguous(self, array: Array) -> bool:
        return bool(array.is_contiguous())

    def is_writable(self, array: Array) -> bool:
        return not array.requires_grad and not array.is_neg()

    def host(self, array: Array) -> np.ndarray[Any, Any]:
        plain = array.detach().resolve_neg()
        if plain.dtype is self._torch.bfloat16:
            plain = plain.view(self._torch.int16)
        view: np.ndarray[Any, Any] = plain.numpy()
        return view

    def host_dtype(self, dtype: str) -> np.dtype[Any]:
        return np.dtype(np.int16) if dtype == "bfloat16" else numpy_dtype(dtype)

    def wrap(self, view: np.ndarray[Any, Any], dtype: str) -> Array:
        tensor = self._torch.from_numpy(view)
        return tensor.view(self._torch.bfloat16) if dtype == "bfloat16" else tensor

    def stream(self, array: Array, index: int) -> int | None:
        return self._stream(index)

    def address(self, array: Array, stream: int | None, cuda: Cuda) -> tuple[int, Any]:
        """Of a copy on the device, made on the caller's stream, where its elements do not lie in C order, or where they
        are the negatives of what lies there (`imag` of a conjugate; torch puts such signs off)."""
        if array.is_neg():
            array = array.resolve_neg()
        if not array.is_contiguous():
            array = array.contiguous()
        try:
            return array.data_ptr(), array
        except RuntimeError as error:  # within a transformation, such as torch.vmap
            raise _no_memory(array, str(error).splitlines()[0]) from error

    def native(self, dtype: str) -> Any:
        return getattr(self._torch, dtype)

    def empty(self, shape: tuple[int, ...], native: Any, index: int, cuda: Cuda) -> tuple[Any, int]:
        device = self._devices.get(index)
        if device is None:
            device = self._devices[index] = self._torch.device("cuda", index)
        tensor = self._empty(shape, dtype=native, device=device)
        return tensor, tensor.data_ptr()

    def finish(self, room: Any, stream: int) -> Array:
        return room


def _no_memory(array: Array, why: str) -> InputError:
    return InputError(
        f"this {type(array).__module__}.{type(array).__qualname__} has no memory of its own",
        why=why,
        do="pass a plain tensor: the one that it stands for, or a copy",
    )


@cache
def kind() -> Kind:
    """The one of it."""
    return Torch()
