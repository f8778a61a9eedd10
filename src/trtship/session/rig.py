"""What the parts of a TensorRT session share."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable

from trtship.family import Engine
from trtship.session.cuda import Cuda
from trtship.session.memory import Ledger
from trtship.spec import TensorSpec
from trtship.terminal import shown

SETTLE = (10.0, 60.0)
"""Seconds after which a CUDA graph is captured anew, and after that once more, where kernels may have been compiled in
the background since (`trtship.bench.plan`)."""

REFUSALS = 3
"""Captures that fail one after the other before no more are tried."""


class Rig:
    """The GPU, the engine, its tensors in order, the memory that was counted, and what was said once.

    `graphs` is how many CUDA graphs one context keeps, 0 for none. `settles` says that TensorRT compiles kernels in the
    background. `on_kernels(settled)` is called where kernels may have been compiled: at the start, and later on.
    """

    def __init__(
        self,
        cuda: Cuda,
        engine: Engine,
        ledger: Ledger,
        *,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        graphs: int,
        settles: bool,
        on_kernels: Callable[[bool], None],
    ) -> None:
        self.cuda, self.engine, self.ledger, self.graphs, self.settles = cuda, engine, ledger, graphs, settles
        self.inputs, self.outputs, self.on_kernels = inputs, outputs, on_kernels
        self.names = (*(spec.name for spec in inputs), *(spec.name for spec in outputs))
        self._said: set[str] = set()
        self._refusals = 0
        self._lock = threading.Lock()

    def stale_at(self, *, fixed: bool, again: int) -> float:
        """When a graph that is captured now for the `again`-th time may hold kernels that were replaced since, by
        `time.monotonic`; infinity where it never does."""
        if fixed or not self.settles or again >= len(SETTLE):
            return float("inf")
        return time.monotonic() + SETTLE[again]

    def captured(self, refusal: str = "") -> None:
        """A capture went well, or why it did not: something else on the GPU may have been in its way, so that only
        several refusals in a row end all graphs."""
        self._refusals = self._refusals + 1 if refusal else 0
        if self._refusals >= REFUSALS:
            self.graphs = 0
            self.say("graphs", f"this plan runs without CUDA graphs from now on: {refusal}")

    def say(self, topic: str, text: str) -> None:
        """A RuntimeWarning, once for each topic of a session."""
        with self._lock:
            if topic in self._said:
                return
            self._said.add(topic)
        warnings.warn(shown(text), RuntimeWarning, stacklevel=2)

    def allocate(self, size: int) -> int:
        """GPU memory for a buffer, counted. Raises GpuMemoryError."""
        self.ledger.take("buffers", size)
        try:
            return self.cuda.allocate(size)
        except BaseException:
            self.ledger.give("buffers", size)
            raise

    def free(self, address: int, size: int) -> None:
        self.ledger.give("buffers", size)
        self.cuda.free(address)
