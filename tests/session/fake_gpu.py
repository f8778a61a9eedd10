"""A GPU and a plan that are none, for what of the session needs no real one: its decisions, bookkeeping and threads.

Memory is the host's; a stream does its work at once; a graph is the list of what was captured. What only CUDA or
TensorRT can tell is in tests/gpu.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np

from trtship.errors import DeviceError, GpuFaultError, GpuMemoryError
from trtship.family.kernels import Kernels
from trtship.family.spares import Owner
from trtship.gpu import Gpu
from trtship.session import tensorrt as tensorrt_session
from trtship.session.arrays import other
from trtship.session.tensorrt import TensorRTSession
from trtship.spec import ShapeRange, TensorSpec

GPU = Gpu(index=0, name="Stand-in", compute_capability="9.0", memory_mib=2**14, driver="580.1", uuid="GPU-0")
FEATURES = 4
INPUTS = (TensorSpec(name="x", shape=("B", FEATURES)),)
OUTPUTS = (TensorSpec(name="y", shape=("B", FEATURES)),)


class FakeCuda:
    """The calls of `trtship.session.cuda.Cuda`; `room` is all the memory that there is, `fault` makes launches fail."""

    def __init__(self, device: int = 0, *, room: int = 2**40) -> None:
        self.device, self.room, self.fault = device, room, False
        self.memory: dict[int, ctypes.Array[Any]] = {}
        self.pinned: dict[int, ctypes.Array[Any]] = {}
        self.handles: set[int] = set()
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.capturing: dict[int, list[Callable[[], None]]] = {}
        self.calls: list[str] = []
        self._next = 1000
        self._lock = threading.Lock()

    @property
    def used(self) -> int:
        return sum(len(one) for one in self.memory.values())

    def select(self) -> None:
        pass

    def switch(self) -> int:
        return -1

    def back(self, before: int) -> None:
        pass

    @contextmanager
    def selected(self) -> Iterator[None]:
        yield

    def settle(self) -> None:
        self.synchronize(0)

    def free_memory(self) -> int:
        return self.room - self.used

    def _handle(self) -> int:
        with self._lock:
            self._next += 1
            self.handles.add(self._next)
            return self._next

    create_stream = create_event = _handle

    def destroy_stream(self, handle: int) -> None:
        self.handles.remove(handle)

    destroy_event = destroy_stream

    def synchronize(self, stream: int) -> None:
        if self.fault:
            raise GpuFaultError("CUDA: an illegal memory access was encountered")

    def is_capturing(self, stream: int) -> bool:
        return stream in self.capturing

    def record(self, event: int, stream: int) -> None:
        assert event in self.handles

    def wait(self, stream: int, event: int) -> None:
        assert event in self.handles

    def wait_on_host(self, event: int) -> None:
        assert event in self.handles
        self.synchronize(0)

    def allocate(self, size: int) -> int:
        if self.used + size > self.room:
            raise GpuMemoryError("CUDA: out of memory", why="the GPU has too little free memory")
        memory = (ctypes.c_uint8 * size)(*[0xAA] * size)  # as others left it
        self.memory[ctypes.addressof(memory)] = memory
        return ctypes.addressof(memory)

    def free(self, address: int) -> None:
        del self.memory[address]

    def allocate_pinned(self, size: int) -> int:
        memory = (ctypes.c_uint8 * size)()
        self.pinned[ctypes.addressof(memory)] = memory
        return ctypes.addressof(memory)

    def free_pinned(self, address: int) -> None:
        del self.pinned[address]

    def is_pinned(self, address: int) -> bool:
        return address in self.pinned

    def _do(self, stream: int, work: Callable[[], None]) -> None:
        if stream in self.capturing:
            self.capturing[stream].append(work)
        else:
            work()

    def fill(self, address: int, byte: int, size: int, stream: int) -> None:
        self._do(stream, lambda: ctypes.memset(address, byte, size) and None)

    def copy(self, target: int, source: int, size: int, stream: int) -> None:
        self.calls.append("copy")
        self._do(stream, lambda: ctypes.memmove(target, source, size) and None)

    def to_device(self, address: int, host: int, size: int, stream: int) -> None:
        self.calls.append("to_device")
        self._do(stream, lambda: ctypes.memmove(address, host, size) and None)

    def to_host(self, host: int, address: int, size: int, stream: int) -> None:
        self.calls.append("to_host")
        self._do(stream, lambda: ctypes.memmove(host, address, size) and None)

    def capture(self, enqueue: Callable[[], None], stream: int) -> int:
        self.calls.append("capture")
        self.capturing[stream] = []
        try:
            enqueue()
        finally:
            work = self.capturing.pop(stream)
        handle = self._handle()
        self.graphs[handle] = work
        return handle

    def launch(self, graph: int, stream: int) -> None:
        self.calls.append("launch")
        if self.fault:
            raise GpuFaultError("CUDA: an illegal memory access was encountered")
        for work in self.graphs[graph]:
            self._do(stream, work)

    def destroy_graph(self, graph: int) -> None:
        self.handles.remove(graph)
        del self.graphs[graph]


class FakeContext:
    """y = 2 x + 1, in float32, wherever the addresses say; `busy` finds two threads in one context."""

    def __init__(self, engine: FakeEngine, profile: int, size: int) -> None:
        self.engine, self.profile, self.size = engine, profile, size
        self.shape: tuple[int, ...] = ()
        self.closed = False
        self._busy = threading.Lock()

    def close(self) -> None:
        self.closed = True

    def set_shapes(self, shapes: Any) -> dict[str, tuple[int, ...]]:
        self.shape = shapes["x"]
        return {"y": self.shape}

    def largest_output(self, name: str) -> int:
        return self.engine.profiles[self.profile]["x"][2][0] * FEATURES * 4

    def execute(self, addresses: Any, stream: int) -> None:
        cuda, shape = self.engine.cuda, self.shape
        if cuda.capturing and self.engine.refuses_capture:
            raise DeviceError("CUDA: operation not permitted when stream is capturing", why="CUDA error 900")
        cuda.calls.append("execute")

        def work() -> None:
            assert self._busy.acquire(blocking=False), "two runs at once in one context"
            array_at(addresses["y"], shape)[...] = 2 * array_at(addresses["x"], shape) + 1
            self._busy.release()

        cuda._do(stream, work)


def array_at(address: int, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    count = int(np.prod(shape))
    memory = memoryview((ctypes.c_float * max(count, 1)).from_address(address))
    return np.frombuffer(memory, np.float32)[:count].reshape(shape)


class FakeCache:
    """A kernel cache: `held` are the kernels; `asked` counts how often they were serialized."""

    def __init__(self) -> None:
        self.held, self.asked = b"", 0

    def deserialize(self, saved: bytes) -> bool:
        self.held = saved
        return True

    def serialize(self) -> bytes:
        self.asked += 1
        return self.held


MODULE = SimpleNamespace(IRuntimeCache=FakeCache)


class FakeEngine:
    """A plan for batches 1 to `top`, with profiles of their own for 4 and 8, or with these `profiles` (min, opt and max
    of each); a context of n rows takes n MiB."""

    inputs, outputs = INPUTS, OUTPUTS
    size = 2**20
    refuses_capture = False

    def __init__(self, cuda: FakeCuda, top: int = 8, profiles: tuple[tuple[int, int, int], ...] = ()) -> None:
        self.cuda, self.closed, self.top = cuda, False, top
        self.contexts: list[FakeContext] = []
        self.turn = threading.RLock()
        self.kernels = Kernels(MODULE, self, b"", turn=self.turn)
        self.profiles = tuple(
            {"x": ((low, FEATURES), (opt, FEATURES), (high, FEATURES))}
            for low, opt, high in (profiles or ((1, 4, top), (4, 4, 4), (8, 8, 8)))
        )

    def is_fixed(self, profile: int) -> bool:
        low, _, high = self.profiles[profile]["x"]
        return low == high

    def range_of(self, name: str, axis: int) -> ShapeRange:
        return ShapeRange(min=1, opt=4, max=self.top)

    def ranges_of(self, inputs: Any) -> dict[str, ShapeRange]:
        return {"B": self.range_of("x", 0)}

    def context_size(self, profile: int) -> int:
        return self.profiles[profile]["x"][2][0] * 2**20

    def create_context(self, profile: int, stream: int) -> FakeContext:
        self.contexts.append(FakeContext(self, profile, self.context_size(profile)))
        return self.contexts[-1]

    def create_runtime_config(self) -> Any:
        return SimpleNamespace(create_runtime_cache=FakeCache)

    @property
    def cache(self) -> FakeCache:
        """Its kernels'."""
        assert self.kernels._held is not None
        found: FakeCache = self.kernels._held.cache
        return found

    def close(self) -> None:
        self.closed = True
        self.kernels.close()
        self.kernels.leave()


class FakeFamily:
    is_rtx = True

    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine

    def __str__(self) -> str:
        return "a stand-in 1.0"

    def environment(self, *, tf32: bool) -> dict[str, str]:
        return {}

    def load(self, plan: bytes, *, tf32: bool, kernels: bytes, owner: Owner) -> FakeEngine:
        self.engine.kernels = Kernels(MODULE, self.engine, kernels, turn=self.engine.turn, owner=owner)
        return self.engine


Opened = tuple[TensorRTSession, FakeCuda, FakeEngine]
Opens = Callable[..., Opened]


def fake_session(
    monkeypatch: Any,
    tmp_path: Any,
    *,
    top: int = 8,
    profiles: Any = (),
    cuda: FakeCuda | None = None,
    engine_of: type[FakeEngine] = FakeEngine,
    **options: Any,
) -> Opened:
    """A session over the fakes."""
    cuda = cuda or FakeCuda()
    engine = engine_of(cuda, top, profiles)
    monkeypatch.setattr(tensorrt_session, "Cuda", lambda device: cuda)
    monkeypatch.setattr(other, "device_of", lambda address: cuda.device)
    monkeypatch.setenv("TRTSHIP_CACHE", str(tmp_path))
    family: Any = FakeFamily(engine)
    return TensorRTSession(b"plan", family, gpu=GPU, **options), cuda, engine


class OnGpu:
    """An array of the stand-in's GPU, as another package would have it."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self.array = array

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {**self.array.__array_interface__, "version": 3}
