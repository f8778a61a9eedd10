"""DLPack by hand: to look into another package's capsule, and to hand our own GPU memory over in one.

The structs are those of https://github.com/dmlc/dlpack/blob/main/include/dlpack/dlpack.h, before version 1: every
package takes and gives them unless it is asked for more.
"""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from trtship.errors import InputError
from trtship.session.arrays.base import numpy_dtype
from trtship.session.arrays.signs import resolved_signs

if TYPE_CHECKING:
    from trtship.session.cuda import Cuda

CPU, CUDA = 1, 2
"""kDLCPU and kDLCUDA."""
NAME = b"dltensor"
_CODES = {"int": 0, "uint": 1, "float": 2, "bfloat": 4, "bool": 6}
_TYPES = {
    **{f"{kind}{bits}": (_CODES[kind], bits) for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
    **{f"float{bits}": (_CODES["float"], bits) for bits in (16, 32, 64)},
    "bfloat16": (_CODES["bfloat"], 16),
    "bool": (_CODES["bool"], 8),
}
_NAMES = {code: name for name, code in _TYPES.items()}


class _DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Managed(ctypes.Structure):
    _fields_ = (("tensor", _DLTensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


_api = ctypes.pythonapi
_api.PyCapsule_GetPointer.restype = ctypes.c_void_p
_api.PyCapsule_GetPointer.argtypes = (ctypes.py_object, ctypes.c_char_p)
_new = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
    ("PyCapsule_New", ctypes.pythonapi)
)
# for a capsule that is being destroyed: no reference to it may be taken any more
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_IsValid", ctypes.pythonapi))
_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


class Tensor(NamedTuple):
    """What a capsule holds; valid while the capsule, or the array that it came from, lives."""

    address: int
    dtype: str
    shape: tuple[int, ...]
    device: int
    contiguous: bool

    @staticmethod
    def is_dense(shape: Sequence[int], strides: Sequence[int]) -> bool:
        """Whether elements of these strides, counted in elements, lie in C order without gaps."""
        wanted = 1
        for size, stride in zip(reversed(shape), reversed(strides), strict=True):
            if size > 1 and stride != wanted:
                return False
            wanted *= size
        return True


def opened(capsule: Any) -> Tensor:
    """What is in a DLPack capsule; it stays the caller's."""
    found = ctypes.cast(_api.PyCapsule_GetPointer(capsule, NAME), ctypes.POINTER(_Managed)).contents.tensor
    shape = tuple(found.shape[: found.ndim])
    dense = not found.strides or Tensor.is_dense(shape, found.strides[: found.ndim])
    name = _NAMES.get((found.code, found.bits), f"DLPack type {found.code} of {found.bits} bits")
    dtype = name if found.lanes == 1 else f"{found.lanes} x {name}"
    return Tensor((found.data or 0) + found.byte_offset, dtype, shape, int(found.device_type), dense)


@contextmanager
def reading(array: Any) -> Iterator[None]:
    """What a package raises while its array is asked where it lies, and what of, is an InputError. What torch lends
    has the signs of its tensors."""
    try:
        with resolved_signs():
            yield
    except (BufferError, TypeError, ValueError, LookupError, RuntimeError, AttributeError) as error:
        kind = type(array)
        raise InputError(
            f"this {kind.__module__}.{kind.__qualname__} cannot be read",
            why=f"its package refuses: {str(error) or type(error).__name__}",
            do="pass a copy of it, or a numpy array or torch tensor of its memory",
        ) from error


class Shared:
    """Memory with a shape and a dtype, on a device, that other packages take by DLPack. `owner` lives as long as any
    of them needs it."""

    def __init__(
        self, address: int, shape: tuple[int, ...], dtype: str, *, device: tuple[int, int], owner: Any
    ) -> None:
        self.address, self.shape, self.dtype, self.device, self.owner = address, shape, dtype, device, owner

    def capsule(self) -> Any:
        """A capsule, whose taker says when it needs the memory no longer."""
        managed, sizes = _Managed(), (ctypes.c_int64 * max(len(self.shape), 1))(*self.shape)
        tensor = managed.tensor
        tensor.data, (tensor.device_type, tensor.device_id) = self.address, self.device
        tensor.ndim, tensor.shape, tensor.strides = len(self.shape), sizes, None
        (tensor.code, tensor.bits), tensor.lanes = _TYPES[self.dtype], 1
        managed.deleter = ctypes.cast(_deleter, ctypes.c_void_p)
        place = ctypes.addressof(managed)
        _lent[place] = (managed, sizes, self.owner)
        return _new(place, NAME, ctypes.cast(_destructor, ctypes.c_void_p))


_lent: dict[int, tuple[Any, ...]] = {}
"""All that is out in capsules, by the address of its struct."""


def _delete(place: int) -> None:
    """Called by the taker, from any thread."""
    _lent.pop(place, None)


def _destruct(capsule: int) -> None:
    """Called with the capsule: nobody took what is in it."""
    if _is_valid(capsule, NAME):
        _lent.pop(_pointer(capsule, NAME), None)


_deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(_delete)
_destructor = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)(_destruct)


class DeviceMemory:
    """GPU memory of a result, `[shape]` of `dtype`, freed with its last user; speaks DLPack and
    `__cuda_array_interface__`. `device` is the GPU's index; `get()` copies it to the host.

    Raises GpuMemoryError.
    """

    def __init__(self, cuda: Cuda, shape: tuple[int, ...], dtype: str) -> None:
        self.shape, self.dtype, self.device, self._cuda = shape, dtype, cuda.device, cuda
        self.nbytes = math.prod(shape) * _TYPES[dtype][1] // 8
        self._event = self.address = 0
        self.address = cuda.allocate(max(self.nbytes, 1))

    def used_on(self, stream: int) -> None:
        """Whoever takes it waits for what is enqueued on `stream` now."""
        if not self._event:
            self._event = self._cuda.create_event()
        self._cuda.record(self._event, stream)

    def ready_on(self, stream: int) -> int:
        """Its address, to be read or written on `stream`, which waits for all that used it before; the host does not.
        The GPU must be the current one."""
        if self._event:
            self._cuda.wait(stream, self._event)
        return self.address

    def get(self) -> np.ndarray[Any, Any]:
        """A copy on the host, `[shape]` of `dtype`, once the contents are there. Raises DeviceError, GpuFaultError;
        DependencyError for bfloat16 without ml_dtypes."""
        found = np.empty(self.shape, numpy_dtype(self.dtype))
        with self._cuda.selected():
            stream = self._cuda.create_stream()
            try:
                self._cuda.to_host(found.ctypes.data, self.ready_on(stream), self.nbytes, stream)
                self._cuda.synchronize(stream)
            finally:
                self._cuda.destroy_stream(stream)
        return found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        """Raises TypeError: numpy would make an array of objects of it."""
        raise TypeError("it is on the GPU, and numpy does not see it there: get() copies it to the host")

    def __dlpack_device__(self) -> tuple[int, int]:
        return CUDA, self.device

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """A capsule; `stream` (1 for the legacy default stream, as None; -1 for none) waits for the contents."""
        if copy or (dl_device is not None and tuple(map(int, dl_device)) != self.__dlpack_device__()):
            raise BufferError("it is handed over as it is, on its own device")
        if stream != -1 and self._event:
            with self._cuda.selected():  # the default streams are those of the current GPU
                self.ready_on(1 if stream is None else int(stream))
        return Shared(self.address, self.shape, self.dtype, device=self.__dlpack_device__(), owner=self).capsule()

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Waits for the contents: the protocol has no event. numpy's type codes have no bfloat16."""
        if self.dtype == "bfloat16":
            raise AttributeError("__cuda_array_interface__ has no bfloat16; DLPack has")
        if self._event:
            self._cuda.wait_on_host(self._event)
        code = {"f": "f", "i": "i", "u": "u", "b": "b"}[self.dtype[0]]
        typestr = f"{'|' if _TYPES[self.dtype][1] == 8 else '<'}{code}{_TYPES[self.dtype][1] // 8}"
        return {"shape": self.shape, "typestr": typestr, "data": (self.address, False), "strides": None, "version": 3}

    def __del__(self) -> None:
        address, self.address = getattr(self, "address", 0), 0
        if address and not sys.is_finalizing():
            with suppress(Exception), self._cuda.selected():
                self._cuda.free(address)  # it waits for the device
                if self._event:
                    self._cuda.destroy_event(self._event)
