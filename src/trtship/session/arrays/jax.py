"""JAX arrays, on the host and on the GPU. JAX has no current stream and its arrays are never written to: inputs and
results are ordered and handed over by DLPack, without a copy."""

from __future__ import annotations

import sys
from collections.abc import Hashable
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from trtship.session.arrays.base import Array, Facts, Kind
from trtship.session.arrays.exchange import CUDA, opened

if TYPE_CHECKING:
    from trtship.session.cuda import Cuda


class Jax(Kind):
    name = "a JAX array"
    keeps = True

    def __init__(self) -> None:
        self._jax: Any = sys.modules["jax"]  # somebody made an array
        self._tracer: Any = getattr(getattr(self._jax, "core", None), "Tracer", ())

    def claims(self, array: Array) -> bool:
        return isinstance(array, self._jax.Array) and not isinstance(array, self._tracer)

    def key(self, array: Array) -> Hashable:
        return array.dtype, array.shape, array.sharding

    def facts(self, array: Array) -> Facts:
        dtype, shape, devices = str(array.dtype), tuple(array.shape), array.devices()
        if len(devices) > 1:
            return Facts(dtype, shape, f"{len(devices)} devices", 0)
        (device,) = devices
        place = "cuda" if device.platform in ("gpu", "cuda") else device.platform
        return Facts(dtype, shape, place, int(array.__dlpack_device__()[1]) if place == "cuda" else 0)

    def host(self, array: Array) -> np.ndarray[Any, Any]:
        return np.asarray(array)

    def wrap(self, view: np.ndarray[Any, Any], dtype: str) -> Array:
        return self._jax.device_put(view, self._jax.devices("cpu")[0])

    def address(self, array: Array, stream: int | None, cuda: Cuda) -> tuple[int, Any]:
        capsule = array.__dlpack__(stream=stream)
        tensor = opened(capsule)
        assert tensor.device == CUDA
        return tensor.address, capsule

    def finish(self, room: Any, stream: int) -> Array:
        return self._jax.dlpack.from_dlpack(super().finish(room, stream))


@cache
def kind() -> Kind:
    """The one of it."""
    return Jax()
