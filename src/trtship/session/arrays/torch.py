"""torch tensors, on the host and on the GPU: on the caller's current stream."""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

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

    def claims(self, array: Array) -> bool:
        return isinstance(array, self._torch.Tensor)

    def key(self, array: Array) -> Hashable:
        return array.dtype, array.shape, array.device, array.layout

    def facts(self, array: Array) -> Facts:
        dtype = str(array.dtype).removeprefix("torch.")
        if array.layout is not self._torch.strided:
            dtype += f" ({str(array.layout).removeprefix('torch.')})"  # no dtype that any input has
        return Facts(dtype, tuple(array.shape), array.device.type, array.device.index or 0)

    def is_contiguous(self, array: Array) -> bool:
        return bool(array.is_contiguous())

    def is_writable(self, array: Array) -> bool:
        return not array.requires_grad

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
        """Of a copy on the device, made on the caller's stream, where its elements do not lie in C order."""
        if not array.is_contiguous():
            array = array.contiguous()
        return array.data_ptr(), array

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


@cache
def kind() -> Kind:
    """The one of it."""
    return Torch()
