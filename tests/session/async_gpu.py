"""The stand-in of `fake_gpu`, asynchronous: streams are queues, whose work is done as late as the host's waits allow,
in a random order among those that events leave free. And tensors with a current stream and a caching allocator, as
torch has them."""

from __future__ import annotations

import ctypes
import random
import threading
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from typing import Any

import numpy as np
from fake_gpu import FakeContext, FakeCuda, FakeEngine, array_at

from trtship.session.arrays.base import Facts, Kind


class Mark:
    """A place in a stream that an event was recorded at."""

    def __init__(self, *, reached: bool = False) -> None:
        self.reached = reached


class Wait:
    """Nothing behind it is done before the mark is reached."""

    def __init__(self, mark: Mark) -> None:
        self.mark = mark


class AsyncCuda(FakeCuda):
    """`hazards` is what went wrong in a way that results need not show; an `idle` one does nothing until somebody
    waits."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.hazards: list[str] = []
        self._random = random.Random(seed)
        self.idle = self._random.random() < 0.5
        self._streams: dict[int, deque[Callable[[], None] | Mark | Wait]] = {}
        self._marks: dict[int, Mark] = {}
        self._gone: list[Any] = []
        self._launched: Counter[int] = Counter()
        self._turn = threading.RLock()

    def create_stream(self) -> int:
        with self._turn:
            stream = self._handle()
            self._streams[stream] = deque()
            return stream

    def destroy_stream(self, handle: int) -> None:
        with self._turn:
            self.synchronize(handle)
            del self._streams[handle]
            super().destroy_stream(handle)

    def create_event(self) -> int:
        event = self._handle()
        self._marks[event] = Mark(reached=True)
        return event

    def destroy_event(self, handle: int) -> None:
        with self._turn:
            del self._marks[handle]
            super().destroy_event(handle)

    def record(self, event: int, stream: int) -> None:
        with self._turn:
            mark = self._marks[event] = Mark()
            self._put(stream, mark)

    def wait(self, stream: int, event: int) -> None:
        with self._turn:
            self._put(stream, Wait(self._marks[event]))

    def wait_on_host(self, event: int) -> None:
        with self._turn:
            mark = self._marks[event]
            self._work_until(lambda: mark.reached)

    def synchronize(self, stream: int) -> None:
        with self._turn:
            self._work_until(lambda: not self._streams[stream])

    def settle(self) -> None:
        with self._turn:
            self._work_until(lambda: not any(self._streams.values()))

    def _do(self, stream: int, work: Callable[[], None]) -> None:
        with self._turn:
            if stream in self.capturing:
                self.capturing[stream].append(work)
            else:
                self._put(stream, work)

    def _put(self, stream: int, what: Callable[[], None] | Mark | Wait) -> None:
        self._streams[stream].append(what)
        for _ in range(0 if self.idle else self._random.choice((0, 0, 0, 1, 2, 6))):
            self._step()

    def _step(self) -> bool:
        """Do what is next in one of the streams that may go on; False where none may."""
        free = [q for q in self._streams.values() if q and not (isinstance(q[0], Wait) and not q[0].mark.reached)]
        if not free:
            return False
        what = self._random.choice(free).popleft()
        if isinstance(what, Mark):
            what.reached = True
        elif not isinstance(what, Wait):
            what()
        return True

    def _work_until(self, done: Callable[[], bool]) -> None:
        while not done():
            assert self._step(), "streams wait for each other"

    def launch(self, graph: int, stream: int) -> None:
        with self._turn:
            self._launched[graph] += 1
            super().launch(graph, stream)
            self._put(stream, lambda: self._launched.subtract([graph]))

    def destroy_graph(self, graph: int) -> None:
        with self._turn:
            if self._launched[graph]:
                self.hazards.append("a graph that runs is destroyed")
            super().destroy_graph(graph)

    @property
    def used(self) -> int:
        with self._turn:
            return super().used

    def allocate(self, size: int) -> int:
        with self._turn:
            return super().allocate(size)

    def free(self, address: int) -> None:
        with self._turn:
            self.settle()  # as cudaFree does
            self._take_away(self.memory[address])
            super().free(address)

    def free_pinned(self, address: int) -> None:
        with self._turn:
            self.settle()
            self._take_away(self.pinned[address])
            super().free_pinned(address)

    def _take_away(self, memory: ctypes.Array[Any]) -> None:
        """Whoever reads it from now on reads no numbers."""
        ctypes.memset(ctypes.addressof(memory), 0xFF, len(memory))
        self._gone.append(memory)


class AsyncContext(FakeContext):
    """Reads its inputs in one step and writes its outputs in a later one."""

    def execute(self, addresses: Any, stream: int) -> None:
        cuda, shape = self.engine.cuda, self.shape
        assert isinstance(cuda, AsyncCuda)
        cuda.calls.append("execute")
        read: list[np.ndarray[Any, Any]] = []

        def begin() -> None:
            if self.closed:
                cuda.hazards.append("a run of a context that is closed")
            if not self._busy.acquire(blocking=False):
                cuda.hazards.append("two runs at once in one context")
            read.append(array_at(addresses["x"], shape).copy())

        def end() -> None:
            array_at(addresses["y"], shape)[...] = 2 * read.pop() + 1
            if self._busy.locked():
                self._busy.release()

        cuda._do(stream, begin)
        cuda._do(stream, end)


class AsyncEngine(FakeEngine):
    def create_context(self, profile: int, stream: int) -> FakeContext:
        self.contexts.append(AsyncContext(self, profile, self.context_size(profile)))
        return self.contexts[-1]


class Tensor:
    """float32 in memory of the GPU's, made on a stream; memory that was let go of is another's on that stream at
    once."""

    def __init__(self, allocator: Tensors, shape: tuple[int, ...], stream: int) -> None:
        self.allocator, self.shape, self.stream = allocator, shape, stream
        self.address = allocator.take(stream, int(np.prod(shape)) * 4)

    def __del__(self) -> None:
        self.allocator.give(self.stream, int(np.prod(self.shape)) * 4, self.address)


class Tensors(Kind):
    """Tensors of one GPU; `current` is each thread's current stream. Where they have to be kept (`keeps`), memory that
    was let go of may be given to another stream."""

    name = "a tensor"

    def __init__(self, cuda: AsyncCuda, *, keeps: bool) -> None:
        self.cuda, self.keeps, self.current = cuda, keeps, threading.local()
        self._cached: dict[tuple[int, int], list[int]] = defaultdict(list)

    def take(self, stream: int, size: int) -> int:
        with self.cuda._turn:
            cached = self._cached[0 if self.keeps else stream, size]
            return cached.pop() if cached else self.cuda.allocate(size)

    def give(self, stream: int, size: int, address: int) -> None:
        self._cached[0 if self.keeps else stream, size].append(address)

    def holding(self, x: np.ndarray[Any, Any]) -> Tensor:
        """A tensor that comes to hold `x`, on the current stream."""
        made = Tensor(self, x.shape, self.current.stream)
        self.write(made, x)
        return made

    def write(self, tensor: Tensor, x: np.ndarray[Any, Any]) -> None:
        """On the current stream."""
        x, address = x.copy(), tensor.address

        def write() -> None:
            array_at(address, x.shape)[...] = x

        self.cuda._do(self.current.stream, write)

    def fetch(self, tensor: Tensor) -> np.ndarray[Any, Any]:
        """What it holds once the current stream is there; filled in then."""
        found, address = np.full(tensor.shape, np.nan, np.float32), tensor.address

        def read() -> None:
            found[...] = array_at(address, found.shape)

        self.cuda._do(self.current.stream, read)
        return found

    def claims(self, array: Any) -> bool:
        return isinstance(array, Tensor)

    def key(self, array: Any) -> Any:
        return array.shape

    def facts(self, array: Any) -> Facts:
        return Facts("float32", array.shape, "cuda", 0)

    def is_writable(self, array: Any) -> bool:
        return True

    def host(self, array: Any) -> np.ndarray[Any, Any]:
        raise AssertionError("a tensor is on the GPU")

    def wrap(self, view: np.ndarray[Any, Any], dtype: str) -> Any:
        raise AssertionError("a tensor is on the GPU")

    def stream(self, array: Any, index: int) -> int | None:
        stream: int = self.current.stream
        return stream

    def address(self, array: Any, stream: int | None, cuda: Any) -> tuple[int, Any]:
        return array.address, array

    def empty(self, shape: tuple[int, ...], native: Any, index: int, cuda: Any) -> tuple[Any, int]:
        made = Tensor(self, shape, self.current.stream)
        return made, made.address

    def finish(self, room: Any, stream: int) -> Any:
        return room
