"""What a session asks of a kind of array."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from trtship.session.arrays.exchange import DeviceMemory
    from trtship.session.cuda import Cuda
    from trtship.spec import TensorSpec

Array: TypeAlias = Any
"""A numpy array, a torch tensor, a CuPy or JAX array, or anything with `__dlpack__` or `__cuda_array_interface__`."""


class Facts(NamedTuple):
    """`dtype` by numpy's name ("float32", "bfloat16"), `shape`, and where it lies: "cpu", "cuda", or what its package
    calls the place; `device` is the GPU's index."""

    dtype: str
    shape: tuple[int, ...]
    place: str
    device: int


class Kind(ABC):
    """One kind of array; there is one instance of each, and nothing here copies what need not be copied."""

    name: str
    """For people: "a torch tensor"."""

    @abstractmethod
    def claims(self, array: Array) -> bool:
        """Whether it is an array of this kind, and not another thing of the same package."""

    @abstractmethod
    def key(self, array: Array) -> Hashable:
        """The dtype, shape and place as the package itself has them: equal keys have equal facts. Asked at every call,
        and so cheap."""

    @abstractmethod
    def facts(self, array: Array) -> Facts:
        """The same in plain values."""

    def is_contiguous(self, array: Array) -> bool:
        """Whether its elements lie in C order without gaps."""
        return True

    def is_writable(self, array: Array) -> bool:
        """Whether a result may be written into it."""
        return False

    def check_results(self, outputs: Sequence[TensorSpec]) -> None:  # noqa: B027 - most have every dtype
        """Raises InputError where, as the package is set, it has no arrays of an output's dtype. Asked again for each
        `key`."""

    # on the host

    @abstractmethod
    def host(self, array: Array) -> np.ndarray[Any, Any]:
        """A numpy view of an array on the host, of its very memory; bfloat16 perhaps as int16."""

    def host_dtype(self, dtype: str) -> np.dtype[Any]:
        """What `host` gives for arrays of that dtype."""
        return numpy_dtype(dtype)

    @abstractmethod
    def wrap(self, view: np.ndarray[Any, Any], dtype: str) -> Array:
        """An array of this kind from a fresh numpy array of `host_dtype(dtype)`, of the same memory."""

    # on the GPU

    def stream(self, array: Array, index: int) -> int | None:
        """The handle of the caller's current stream; None where the package has no such thing."""
        return None

    @abstractmethod
    def address(self, array: Array, stream: int | None, cuda: Cuda) -> tuple[int, Any]:
        """The device address of its elements in C order, to be used on `stream` once what they wait for is done; and
        what must stay alive until the work that reads them is enqueued (`keeps` tells: until it is done)."""

    keeps = False
    """Whether an input's memory may be given to others while it is still being read, unless it is held."""

    def native(self, dtype: str) -> Any:
        """The package's own name for a dtype, for `empty`."""
        return dtype

    def empty(self, shape: tuple[int, ...], native: Any, index: int, cuda: Cuda) -> tuple[Any, int]:
        """Room for a result on the GPU, and its address. `finish` makes the caller's array of it."""
        from trtship.session.arrays.exchange import DeviceMemory

        memory = DeviceMemory(cuda, shape, str(native))
        return memory, memory.address

    def finish(self, room: Any, stream: int) -> Array:
        """The caller's array of what `empty` gave, whose contents were enqueued on `stream`."""
        memory: DeviceMemory = room
        memory.used_on(stream)
        return memory

    def read(self, array: Array, stream: int) -> None:  # noqa: B027 - most belong to their package
        """Called for an input once what reads it was enqueued on `stream`."""

    def written(self, array: Array, stream: int, cuda: Cuda) -> None:  # noqa: B027 - most have written on their own stream
        """Called for an array of the caller's that results were enqueued to on `stream`, where that is none of the
        caller's: whoever reads it next must find them."""


def speaks(array: Array, *names: str) -> bool:
    """Whether it has one of these attributes. Those of its class are not evaluated: that may take time, or raise."""
    return any(hasattr(type(array), name) for name in names) or any(hasattr(array, name) for name in names)


def numpy_dtype(name: str) -> np.dtype[Any]:
    """numpy's dtype of that name. It has no bfloat16 of its own: ml_dtypes has. Raises DependencyError."""
    try:
        return np.dtype(name)
    except TypeError:
        from trtship.needs import need

        found: np.dtype[Any] = np.dtype(getattr(need("ml_dtypes", purpose=f"{name} in numpy"), name))
        return found
