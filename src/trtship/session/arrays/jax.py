"""JAX arrays, on the host and on the GPU. JAX has no current stream and its arrays are never written to: inputs and
results are ordered and handed over by DLPack, without a copy.

JAX has no 64-bit arrays unless `jax_enable_x64` is set: whatever makes an array, DLPack too, makes one of 32 bits, and
one that was made regardless is cut by what is computed with it. Results of 64 bits are refused then.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from trtship.errors import InputError
from trtship.session.arrays.base import Array, Facts, Kind
from trtship.session.arrays.exchange import CUDA, opened, reading

if TYPE_CHECKING:
    from trtship.session.cuda import Cuda
    from trtship.spec import TensorSpec

CUT = {"float64": "float32", "int64": "int32", "uint64": "uint32"}
"""What JAX makes of a dtype while `jax_enable_x64` is off."""


class Jax(Kind):
    name = "a JAX array"
    keeps = True

    def __init__(self) -> None:
        self._jax: Any = sys.modules["jax"]  # somebody made an array
        self._tracer: Any = getattr(getattr(self._jax, "core", None), "Tracer", ())
        # it was in jax.experimental before 0.8
        home = self._jax if hasattr(self._jax, "enable_x64") else import_module("jax.experimental")
        self._enable_x64: Callable[[bool], AbstractContextManager[Any]] = home.enable_x64

    def claims(self, array: Array) -> bool:
        return isinstance(array, self._jax.Array) and not isinstance(array, self._tracer)

    def key(self, array: Array) -> Hashable:
        return array.dtype, array.shape, array.sharding, self._jax.config.jax_enable_x64

    def facts(self, array: Array) -> Facts:
        with reading(array):  # it may have been deleted, or donated
            dtype, shape, devices = str(array.dtype), tuple(array.shape), array.devices()
        if len(devices) > 1:
            return Facts(dtype, shape, f"{len(devices)} devices", 0)
        (device,) = devices
        place = "cuda" if device.platform in ("gpu", "cuda") else device.platform
        return Facts(dtype, shape, place, int(array.__dlpack_device__()[1]) if place == "cuda" else 0)

    def check_results(self, outputs: Sequence[TensorSpec]) -> None:
        if self._jax.config.jax_enable_x64:
            return
        for spec in outputs:
            if spec.dtype in CUT:
                raise InputError(
                    f"{spec.name} is {spec.dtype}, which JAX does not hold as it is set",
                    why=f"jax_enable_x64 is off: it would become {CUT[spec.dtype]}, and nothing is converted by itself",
                    do='jax.config.update("jax_enable_x64", True), or pass numpy arrays',
                )

    def host(self, array: Array) -> np.ndarray[Any, Any]:
        with reading(array):
            return np.asarray(array)

    def wrap(self, view: np.ndarray[Any, Any], dtype: str) -> Array:
        with self._whole(dtype):
            return self._jax.device_put(view, self._jax.devices("cpu")[0])

    def address(self, array: Array, stream: int | None, cuda: Cuda) -> tuple[int, Any]:
        with reading(array):
            capsule = array.__dlpack__(stream=stream)
        tensor = opened(capsule)
        assert tensor.device == CUDA
        return tensor.address, capsule

    def finish(self, room: Any, stream: int) -> Array:
        with self._whole(room.dtype):
            return self._jax.dlpack.from_dlpack(super().finish(room, stream))

    def _whole(self, dtype: str) -> AbstractContextManager[Any]:
        """64 bits stay 64 in this thread: the caller may have set that for one thread, and this be another."""
        return self._enable_x64(True) if dtype in CUT else nullcontext()


@cache
def kind() -> Kind:
    """The one of it."""
    return Jax()
