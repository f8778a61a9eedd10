"""numpy arrays, on the host."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import numpy as np

from trtship.errors import InputError
from trtship.session.arrays.base import Array, Facts, Kind

if TYPE_CHECKING:
    from trtship.session.cuda import Cuda


class Numpy(Kind):
    name = "a numpy array"

    def claims(self, array: Array) -> bool:
        return isinstance(array, np.ndarray)

    def key(self, array: Array) -> Hashable:
        return array.dtype, array.shape, type(array)

    def facts(self, array: Array) -> Facts:
        if isinstance(array, np.ma.MaskedArray):
            raise InputError(
                "this numpy array has a mask",
                why="what it hides would be computed with as if it were there",
                do="pass array.filled(VALUE)",
            )
        return Facts(str(array.dtype), array.shape, "cpu", 0)

    def is_contiguous(self, array: Array) -> bool:
        return bool(array.flags.c_contiguous)

    def is_writable(self, array: Array) -> bool:
        return bool(array.flags.writeable)

    def host(self, array: Array) -> np.ndarray[Any, Any]:
        plain: np.ndarray[Any, Any] = array.view(np.ndarray)
        return plain

    def wrap(self, view: np.ndarray[Any, Any], dtype: str) -> Array:
        return view

    def address(self, array: Array, stream: int | None, cuda: Cuda) -> tuple[int, Any]:
        raise AssertionError("a numpy array is on the host")


NUMPY = Numpy()


def kind() -> Kind:
    return NUMPY
