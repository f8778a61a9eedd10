"""CuPy arrays, on the GPU: on the caller's current stream."""

from __future__ import annotations

import sys
from collections.abc import Hashable
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from trtship.session.arrays.base import Array, Facts, Kind

if TYPE_CHECKING:
    from trtship.session.cuda import Cuda


class Cupy(Kind):
    name = "a CuPy array"

    def __init__(self) -> None:
        self._cupy: Any = sys.modules["cupy"]  # somebody made an array

    def claims(self, array: Array) -> bool:
        return isinstance(array, self._cupy.ndarray)

    def key(self, array: Array) -> Hashable:
        return array.dtype, array.shape, array.data.device_id

    def facts(self, array: Array) -> Facts:
        return Facts(str(array.dtype), tuple(array.shape), "cuda", int(array.data.device_id))

    def is_contiguous(self, array: Array) -> bool:
        return bool(array.flags.c_contiguous)

    def is_writable(self, array: Array) -> bool:
        return True

    def host(self, array: Array) -> np.ndarray[Any, Any]:
        raise AssertionError("a CuPy array is on the GPU")

    def wrap(self, view: np.ndarray[Any, Any], dtype: str) -> Array:
        raise AssertionError("a CuPy array is on the GPU")

    def stream(self, array: Array, index: int) -> int | None:
        return int(self._cupy.cuda.get_current_stream().ptr)

    def address(self, array: Array, stream: int | None, cuda: Cuda) -> tuple[int, Any]:
        """Of a copy on the device, made on the caller's stream, where its elements do not lie in C order."""
        if not array.flags.c_contiguous:
            array = self._cupy.ascontiguousarray(array)
        return int(array.data.ptr), array

    def empty(self, shape: tuple[int, ...], native: Any, index: int, cuda: Cuda) -> tuple[Any, int]:
        array = self._cupy.empty(shape, dtype=native)  # on the current device, which the session has chosen
        return array, int(array.data.ptr)

    def finish(self, room: Any, stream: int) -> Array:
        return room


@cache
def kind() -> Kind:
    """The one of it."""
    return Cupy()
