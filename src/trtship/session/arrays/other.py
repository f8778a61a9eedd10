"""Whatever else speaks DLPack or `__cuda_array_interface__`: on the host it becomes numpy's view of the same memory, on
the GPU results are `DeviceMemory`, which speaks both."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import numpy as np

from trtship.session.arrays.base import Array, Facts, Kind
from trtship.session.arrays.exchange import CPU, CUDA, DeviceMemory, Tensor, opened

if TYPE_CHECKING:
    from trtship.session.cuda import Cuda


class Other(Kind):
    name = "an array of another package"
    keeps = True

    def claims(self, array: Array) -> bool:
        return hasattr(array, "__cuda_array_interface__") or hasattr(array, "__dlpack_device__")

    def key(self, array: Array) -> Hashable:
        return self._seen(array)

    def facts(self, array: Array) -> Facts:
        return self._seen(array)[0]

    def is_contiguous(self, array: Array) -> bool:
        return self._seen(array)[1]

    def _seen(self, array: Array) -> tuple[Facts, bool]:
        """Its facts, and whether it is contiguous: it must be (`keeps`), and so that is part of its key."""
        interface = getattr(array, "__cuda_array_interface__", None)
        if interface is not None:
            where = array.__dlpack_device__()[1] if hasattr(array, "__dlpack_device__") else 0
            dtype, shape, strides = np.dtype(interface["typestr"]), tuple(interface["shape"]), interface.get("strides")
            dense = strides is None or Tensor.is_dense(shape, [stride // dtype.itemsize for stride in strides])
            return Facts(str(dtype), shape, "cuda", int(where)), dense
        place, index = array.__dlpack_device__()
        tensor = opened(array.__dlpack__(**({"stream": -1} if int(place) == CUDA else {})))
        names = {CPU: "cpu", CUDA: "cuda"}
        where = names.get(int(place), f"DLPack device {int(place)}")
        return Facts(tensor.dtype, tensor.shape, where, int(index)), tensor.contiguous

    def is_writable(self, array: Array) -> bool:
        interface = getattr(array, "__cuda_array_interface__", None)
        return interface is not None and not interface["data"][1]

    def host(self, array: Array) -> np.ndarray[Any, Any]:
        return np.from_dlpack(array)

    def wrap(self, view: np.ndarray[Any, Any], dtype: str) -> Array:
        return view

    def address(self, array: Array, stream: int | None, cuda: Cuda) -> tuple[int, Any]:
        interface = getattr(array, "__cuda_array_interface__", None)
        if interface is None:
            capsule = array.__dlpack__(stream=stream)
            return opened(capsule).address, (array, capsule)
        theirs = interface.get("stream")
        if theirs is not None and stream is not None and theirs != stream:
            event = cuda.create_event()
            cuda.record(event, int(theirs))
            cuda.wait(stream, event)
            cuda.destroy_event(event)  # CUDA keeps it until the wait is done
        return int(interface["data"][0]), array


KIND = Other()

__all__ = ["KIND", "DeviceMemory"]
