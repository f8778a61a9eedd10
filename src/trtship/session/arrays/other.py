"""Whatever else speaks DLPack or `__cuda_array_interface__`: on the host it becomes numpy's view of the same memory, on
the GPU results are `DeviceMemory`, which speaks both. That comes back as an input without either."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import numpy as np

from trtship.errors import DependencyError, InputError
from trtship.session.arrays.base import Array, Facts, Kind, speaks
from trtship.session.arrays.exchange import CPU, CUDA, DeviceMemory, Tensor, opened, reading
from trtship.session.cuda import device_of

if TYPE_CHECKING:
    from trtship.session.cuda import Cuda


PER_THREAD = 2
"""cudaStreamPerThread: of whoever names it."""


class Other(Kind):
    name = "an array of another package"
    keeps = True

    def claims(self, array: Array) -> bool:
        return speaks(array, "__cuda_array_interface__", "__dlpack_device__")

    def key(self, array: Array) -> Hashable:
        return self._seen(array)

    def facts(self, array: Array) -> Facts:
        return self._seen(array)[0]

    def is_contiguous(self, array: Array) -> bool:
        return self._seen(array)[1]

    def _seen(self, array: Array) -> tuple[Facts, bool]:
        """Its facts, and whether it is contiguous: it must be (`keeps`), and so that is part of its key."""
        if isinstance(array, DeviceMemory):
            return Facts(array.dtype, array.shape, "cuda", array.device), True
        with reading(array):
            interface = getattr(array, "__cuda_array_interface__", None)
            if interface is not None:
                return _by_interface(array, interface)
            place, index = array.__dlpack_device__()
            tensor = opened(array.__dlpack__(**({"stream": -1} if int(place) == CUDA else {})))
        names = {CPU: "cpu", CUDA: "cuda"}
        where = names.get(int(place), f"DLPack device {int(place)}")
        return Facts(tensor.dtype, tensor.shape, where, int(index)), tensor.contiguous

    def is_writable(self, array: Array) -> bool:
        if isinstance(array, DeviceMemory):
            return True
        interface = getattr(array, "__cuda_array_interface__", None)
        return interface is not None and not interface["data"][1]

    def host(self, array: Array) -> np.ndarray[Any, Any]:
        with reading(array):
            return np.from_dlpack(array)

    def wrap(self, view: np.ndarray[Any, Any], dtype: str) -> Array:
        return view

    def address(self, array: Array, stream: int | None, cuda: Cuda) -> tuple[int, Any]:
        assert stream is not None, "these packages have no current stream: the session has one for them"
        if isinstance(array, DeviceMemory):
            return array.ready_on(stream), array
        with reading(array):
            interface = getattr(array, "__cuda_array_interface__", None)
            if interface is None:
                capsule = array.__dlpack__(stream=stream)
                return opened(capsule).address, (array, capsule)
        theirs = interface.get("stream")
        if theirs is not None:
            _after(int(theirs), stream, cuda)
        return int(interface["data"][0]), array

    def read(self, array: Array, stream: int) -> None:
        if isinstance(array, DeviceMemory):
            array.used_on(stream)

    def written(self, array: Array, stream: int, cuda: Cuda) -> None:
        """Where there is no stream of theirs to wait for the results, or it is a thread's own, which need not be this
        one's, this thread waits."""
        if isinstance(array, DeviceMemory):
            array.used_on(stream)
            return
        with reading(array):
            theirs = array.__cuda_array_interface__.get("stream")
        if theirs is None or int(theirs) == PER_THREAD:
            cuda.synchronize(stream)
        else:
            _after(stream, int(theirs), cuda)


def _after(first: int, then: int, cuda: Cuda) -> None:
    """What is enqueued on `then` from now on starts when all that is on `first` now is done."""
    if first != then:
        event = cuda.create_event()
        cuda.record(event, first)
        cuda.wait(then, event)
        cuda.destroy_event(event)  # CUDA keeps it until the wait is done


def _by_interface(array: Array, interface: dict[str, Any]) -> tuple[Facts, bool]:
    if interface.get("mask") is not None:
        raise InputError(
            f"this {type(array).__module__}.{type(array).__qualname__} has a mask",
            why="what it hides would be computed with as if it were there",
            do="fill in what the mask hides, and pass the array without it",
        )
    dtype, shape, strides = np.dtype(interface["typestr"]), tuple(interface["shape"]), interface.get("strides")
    dense = strides is None or Tensor.is_dense(shape, [stride // dtype.itemsize for stride in strides])
    if hasattr(array, "__dlpack_device__"):
        index = int(array.__dlpack_device__()[1])
    else:
        index = _device(int(interface["data"][0]))
    return Facts(str(dtype), shape, "cuda", index), dense


def _device(address: int) -> int:
    if not address:  # an array without elements
        return 0
    try:
        found = device_of(address)
    except DependencyError:
        return 0  # no plan runs without cuda-bindings, and whatever else does takes nothing of any GPU's
    if found is None:
        raise InputError(
            "CUDA does not know the memory of this array",
            why=f"its __cuda_array_interface__ has the address {address:#x}, which is no GPU's",
            do="pass an array of GPU memory, or a numpy array",
        )
    return found


KIND = Other()

__all__ = ["KIND", "DeviceMemory"]
