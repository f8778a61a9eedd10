"""Kernel caches of engines that are closed, for the next engine of the same plan in this process."""

from __future__ import annotations

import os
import threading
from typing import Any, TypeAlias

from trtship.leak import leak

Owner: TypeAlias = tuple[str, int]
"""What the kernels depend on, by its name, and the number of the GPU."""
MOST = 16
"""Spare caches of one GPU: those given first make way."""


class Spares:
    """TensorRT for RTX 1.6.1 keeps memory for good each time that a kernel cache is filled from what was kept: 0.3 MiB
    and more, of a plan of 0.5 MiB (`benchmarks/leaks.py`). So who is done with one leaves it here for the next. A cache
    has one engine at a time. What is here when the process ends is not destroyed: CUDA may be gone by then.
    """

    def __init__(self, most: int = MOST) -> None:
        self._most, self._lock, self._process = most, threading.Lock(), os.getpid()
        self._spare: list[tuple[Owner, Any]] = []
        leak(self)

    def take(self, owner: Owner) -> Any | None:
        """The cache that was given last for this owner, if there is one."""
        with self._lock:
            self._of_this_process()
            for at in reversed(range(len(self._spare))):
                if self._spare[at][0] == owner:
                    return self._spare.pop(at)[1]
        return None

    def give(self, owner: Owner, cache: Any) -> None:
        """Keep it for `take`. No context uses it any more."""
        with self._lock:
            self._of_this_process()
            self._spare.append((owner, cache))
            same_gpu = [at for at, (other, _) in enumerate(self._spare) if other[1] == owner[1]]
            for at in reversed(same_gpu[: -self._most]):
                del self._spare[at]

    def _of_this_process(self) -> None:
        """A process that was forked has no use for those of the other one, and must not destroy them."""
        if self._process != os.getpid():
            leak(self._spare)
            self._spare, self._process = [], os.getpid()
