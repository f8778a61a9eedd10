"""The few CUDA calls that a session needs, through NVIDIA's cuda-bindings: memory, copies, streams, events, graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from trtship.errors import DeviceError, GpuFaultError, GpuMemoryError
from trtship.needs import need

OUT_OF_MEMORY = 2
STICKY = frozenset({214, 220, 226, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 721})
"""Codes after which CUDA refuses all further work of the process on that device: illegal address, failed launch,
uncorrectable memory errors and the like (cudaError_t in CUDA's driver_types.h)."""
INVALID_VALUE = 1
NO_MEMORY_OF_CUDA, HOST_MEMORY = 0, 1
"""cudaMemoryTypeUnregistered; and cudaMemoryTypeHost: what CUDA allocated, or registered, on the host."""


def device_of(address: int) -> int | None:
    """The index of the GPU that memory belongs to; None for memory that CUDA does not know. Raises DependencyError,
    GpuFaultError, DeviceError."""
    rt = need("cuda.bindings.runtime", purpose="arrays on a GPU")
    code, attributes = rt.cudaPointerGetAttributes(address)
    if int(code) == INVALID_VALUE:  # as CUDA before 11 says it
        rt.cudaGetLastError()
        return None
    if int(code):
        raise _error(rt, int(code), code)
    return None if int(attributes.type) == NO_MEMORY_OF_CUDA else int(attributes.device)


def _error(rt: Any, number: int, code: Any) -> DeviceError:
    _, text = rt.cudaGetErrorString(code)
    words = text.decode() if isinstance(text, bytes) else str(text)
    if number == OUT_OF_MEMORY:
        rt.cudaGetLastError()  # it is told once, and not to the next one who asks
        return GpuMemoryError(
            f"CUDA: {words}",
            why="the GPU has too little free memory",
            do="free GPU memory, or run smaller batches",
        )
    if number in STICKY:
        return GpuFaultError(
            f"CUDA: {words}",
            why=f"CUDA error {number}: the GPU does no more work for this process",
            do="start the process again; compute-sanitizer finds the kernel that did it",
        )
    return DeviceError(f"CUDA: {words}", why=f"CUDA error {number}", do="trtship doctor shows what this machine has")


class Cuda:
    """CUDA on one device, through the runtime API; addresses, streams, events and graphs are plain ints.

    Every call raises with CUDA's own words: GpuMemoryError where memory ran out, GpuFaultError where the device can do
    no more work for this process, DeviceError for all else. They work on the calling thread's current device: `select`
    it, or stand inside `selected`.
    """

    def __init__(self, device: int = 0) -> None:
        self._rt: Any = need("cuda.bindings.runtime", purpose="running a plan")
        self.device = device
        rt = self._rt
        self._kinds = rt.cudaMemcpyKind
        self._thread_local = rt.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        # what every call of a session does, bound once
        self._launch: Callable[..., Any] = rt.cudaGraphLaunch
        self._record: Callable[..., Any] = rt.cudaEventRecord
        self._wait: Callable[..., Any] = rt.cudaStreamWaitEvent
        code, before = rt.cudaGetDevice()
        self.select()  # CUDA starts, where it had not
        if int(code) == 0:
            self.back(int(before))

    def _check(self, result: tuple[Any, ...]) -> Any:
        code, *values = result
        if int(code) != 0:
            raise self.error(int(code), code)
        return values[0] if values else None

    def error(self, number: int, code: Any = None) -> DeviceError:
        """What CUDA says of an error code."""
        return _error(self._rt, number, self._rt.cudaError_t(number) if code is None else code)

    def select(self) -> None:
        """Make this device the calling thread's current one."""
        self._check(self._rt.cudaSetDevice(self.device))

    @contextmanager
    def selected(self) -> Iterator[None]:
        """This device is the calling thread's current one while the block runs; then the one that it was."""
        before = self.switch()
        try:
            yield
        finally:
            self.back(before)

    def switch(self) -> int:
        """As `select`; the device that was current before, -1 where it was this one. It is selected all the same: in a
        thread that is new to CUDA its context becomes the current one by that."""
        code, before = self._rt.cudaGetDevice()
        if code:
            raise self.error(int(code))
        self.select()
        return -1 if before == self.device else int(before)

    def back(self, before: int) -> None:
        """Undo `switch`."""
        if before >= 0 and before != self.device:
            self._rt.cudaSetDevice(before)

    def free_memory(self) -> int:
        """Bytes that are free on the device, whoever asks."""
        code, free, _ = self._rt.cudaMemGetInfo()
        self._check((code,))
        return int(free)

    def create_stream(self) -> int:
        return int(self._check(self._rt.cudaStreamCreateWithFlags(self._rt.cudaStreamNonBlocking)))

    def destroy_stream(self, stream: int) -> None:
        self._check(self._rt.cudaStreamDestroy(stream))

    def synchronize(self, stream: int) -> None:
        """Wait until all that was enqueued on a stream is done; errors of that work are told here."""
        self._check(self._rt.cudaStreamSynchronize(stream))

    def settle(self) -> None:
        """Wait until all that anybody in this process enqueued on the device is done; errors of it are told here."""
        self._check(self._rt.cudaDeviceSynchronize())

    def is_capturing(self, stream: int) -> bool:
        """Whether what is enqueued on this stream goes into somebody's CUDA graph."""
        return bool(int(self._check(self._rt.cudaStreamIsCapturing(stream))))

    def create_event(self) -> int:
        return int(self._check(self._rt.cudaEventCreateWithFlags(self._rt.cudaEventDisableTiming)))

    def destroy_event(self, event: int) -> None:
        self._check(self._rt.cudaEventDestroy(event))

    def record(self, event: int, stream: int) -> None:
        """The event is what has been enqueued on the stream so far."""
        code = self._record(event, stream)[0]
        if code:
            raise self.error(int(code))

    def wait(self, stream: int, event: int) -> None:
        """What is enqueued on the stream from now on starts when the event is done; the host does not wait."""
        code = self._wait(stream, event, 0)[0]
        if code:
            raise self.error(int(code))

    def wait_on_host(self, event: int) -> None:
        """The calling thread waits until the event is done."""
        self._check(self._rt.cudaEventSynchronize(event))

    def allocate(self, size: int) -> int:
        """Device memory of `size` bytes; its address."""
        return int(self._check(self._rt.cudaMalloc(size)))

    def free(self, address: int) -> None:
        self._check(self._rt.cudaFree(address))

    def allocate_pinned(self, size: int) -> int:
        """Host memory of `size` bytes that the GPU copies from and to by itself; its address."""
        return int(self._check(self._rt.cudaHostAlloc(size, self._rt.cudaHostAllocPortable)))

    def free_pinned(self, address: int) -> None:
        self._check(self._rt.cudaFreeHost(address))

    def is_pinned(self, address: int) -> bool:
        """Whether host memory is such that the GPU can copy it without staging."""
        code, attributes = self._rt.cudaPointerGetAttributes(address)
        if int(code):
            self._rt.cudaGetLastError()
            return False
        return int(attributes.type) == HOST_MEMORY

    def fill(self, address: int, byte: int, size: int, stream: int) -> None:
        """Every byte of this memory becomes `byte`."""
        self._check(self._rt.cudaMemsetAsync(address, byte, size, stream))

    def to_device(self, address: int, host: int, size: int, stream: int) -> None:
        self._check(self._rt.cudaMemcpyAsync(address, host, size, self._kinds.cudaMemcpyHostToDevice, stream))

    def to_host(self, host: int, address: int, size: int, stream: int) -> None:
        self._check(self._rt.cudaMemcpyAsync(host, address, size, self._kinds.cudaMemcpyDeviceToHost, stream))

    def copy(self, target: int, source: int, size: int, stream: int) -> None:
        """From one place of the device's memory to another."""
        self._check(self._rt.cudaMemcpyAsync(target, source, size, self._kinds.cudaMemcpyDeviceToDevice, stream))

    def capture(self, enqueue: Callable[[], None], stream: int) -> int:
        """A graph, ready to launch, of what `enqueue` puts on the stream; nothing of it runs now. Other threads may use
        CUDA meanwhile. Raises what `enqueue` raises, or DeviceError where it did what no graph can hold."""
        self._check(self._rt.cudaStreamBeginCapture(stream, self._thread_local))
        try:
            enqueue()
        except BaseException:
            _, graph = self._rt.cudaStreamEndCapture(stream)  # it says that the capture is not valid: known
            self._rt.cudaGetLastError()
            if graph is not None and int(graph):
                self._rt.cudaGraphDestroy(graph)
            raise
        graph = self._check(self._rt.cudaStreamEndCapture(stream))
        try:
            return int(self._check(self._rt.cudaGraphInstantiate(graph, 0)))
        finally:
            self._rt.cudaGraphDestroy(graph)

    def launch(self, graph: int, stream: int) -> None:
        """Enqueue a graph. Launches of one graph wait for each other."""
        code = self._launch(graph, stream)[0]
        if code:
            raise self.error(int(code))

    def destroy_graph(self, graph: int) -> None:
        self._check(self._rt.cudaGraphExecDestroy(graph))
