"""The few CUDA calls that a session needs, through NVIDIA's cuda-bindings: device memory, copies, streams."""

from __future__ import annotations

from typing import Any

from trtship.errors import DeviceError
from trtship.needs import need


class Cuda:
    """CUDA on one device, through the runtime API. Every call raises DeviceError with CUDA's own words."""

    def __init__(self, device: int = 0) -> None:
        self._rt: Any = need("cuda.bindings.runtime", purpose="running a plan")
        self.device = device
        self.select()

    def _check(self, result: tuple[Any, ...]) -> Any:
        code, *values = result
        if int(code) != 0:
            _, text = self._rt.cudaGetErrorString(code)
            words = text.decode() if isinstance(text, bytes) else str(text)
            oom = "memory allocation" in str(code).lower() or int(code) == 2
            raise DeviceError(
                f"CUDA: {words}",
                why="the GPU has too little free memory" if oom else f"CUDA error {int(code)}",
                do="free GPU memory, or run smaller batches" if oom else "trtship doctor shows what this machine has",
            )
        return values[0] if values else None

    def select(self) -> None:
        """Make this device the calling thread's current one."""
        self._check(self._rt.cudaSetDevice(self.device))

    def device_name(self) -> str:
        name = self._check(self._rt.cudaGetDeviceProperties(self.device)).name
        return name.decode() if isinstance(name, bytes) else str(name)

    def create_stream(self) -> int:
        return int(self._check(self._rt.cudaStreamCreateWithFlags(self._rt.cudaStreamNonBlocking)))

    def destroy_stream(self, stream: int) -> None:
        self._check(self._rt.cudaStreamDestroy(stream))

    def synchronize(self, stream: int) -> None:
        self._check(self._rt.cudaStreamSynchronize(stream))

    def allocate(self, size: int) -> int:
        """Device memory of `size` bytes; its address."""
        return int(self._check(self._rt.cudaMalloc(size)))

    def free(self, address: int) -> None:
        self._check(self._rt.cudaFree(address))

    def fill(self, address: int, byte: int, size: int, stream: int) -> None:
        """Every byte of this memory becomes `byte`."""
        self._check(self._rt.cudaMemsetAsync(address, byte, size, stream))

    def to_device(self, address: int, host: int, size: int, stream: int) -> None:
        kind = self._rt.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._check(self._rt.cudaMemcpyAsync(address, host, size, kind, stream))

    def to_host(self, host: int, address: int, size: int, stream: int) -> None:
        kind = self._rt.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._check(self._rt.cudaMemcpyAsync(host, address, size, kind, stream))
