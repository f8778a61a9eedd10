"""What a session holds of the GPU's memory and of pinned host memory, counted and bounded."""

from __future__ import annotations

import threading
from typing import NamedTuple

from trtship.errors import GpuMemoryError

MIB = 2**20


class Memory(NamedTuple):
    """MiB: the engine's weights, the contexts' activations, device buffers, what CUDA graphs took when they were made,
    and `pinned` memory of the host. `total` is the GPU's. `graphs_kept` counts graphs, `contexts_open` contexts."""

    engine: float = 0.0
    contexts: float = 0.0
    buffers: float = 0.0
    graphs: float = 0.0
    pinned: float = 0.0
    contexts_open: int = 0
    graphs_kept: int = 0

    @property
    def total(self) -> float:
        return self.engine + self.contexts + self.buffers + self.graphs


class Ledger:
    """Bytes of each kind, and at most `limit` MiB of the GPU's of all kinds together. Safe from any thread."""

    def __init__(self, limit: float | None = None) -> None:
        self.limit = limit
        self._bytes = dict.fromkeys(("engine", "contexts", "buffers", "graphs", "pinned"), 0)
        self._count = dict.fromkeys(("contexts", "graphs"), 0)
        self._lock = threading.Lock()

    def take(self, kind: str, size: int) -> None:
        """Write down that `size` bytes are taken. Raises GpuMemoryError where that would be more than the limit."""
        with self._lock:
            used = sum(size for name, size in self._bytes.items() if name != "pinned")
            if kind != "pinned" and self.limit is not None and used + size > self.limit * MIB:
                raise GpuMemoryError(
                    "the session's memory limit is reached",
                    why=f"{used / MIB:.0f} MiB are in use, {size / MIB:.1f} more are needed for {kind}, and "
                    f"memory_limit is {self.limit:g} MiB",
                    do="raise memory_limit, or run smaller batches",
                )
            self._bytes[kind] += size
            if kind in self._count:
                self._count[kind] += 1

    def give(self, kind: str, size: int) -> None:
        """Write down that they are given back."""
        with self._lock:
            self._bytes[kind] -= size
            if kind in self._count:
                self._count[kind] -= 1

    @property
    def memory(self) -> Memory:
        with self._lock:
            mib = {name: round(size / MIB, 3) for name, size in self._bytes.items()}
            return Memory(**mib, contexts_open=self._count["contexts"], graphs_kept=self._count["graphs"])
