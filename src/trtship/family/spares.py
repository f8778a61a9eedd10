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
    """TensorRT for RTX 1.6.1 keeps memory for good when a kernel cache is filled from what was kept, and used: 0.1 to
    0.35 MiB of the host's a time, of kernels of 0.7 MiB (`benchmarks/notes.md`). So who is done with one leaves it here
    for the next. A cache has one engine at a time. What is here when the process ends is not destroyed: CUDA may have
    ended before.

    It may be called from any thread, and by what is called when an object is destroyed, which may be in the middle of
    another call."""

    def __init__(self, most: int = MOST) -> None:
        self._most, self._lock = most, threading.RLock()
        self._spare: list[tuple[Owner, Any]] = []
        leak(self)
        os.register_at_fork(after_in_child=self._forget)

    def take(self, owner: Owner) -> Any | None:
        """The cache that was given last for this owner, if there is one."""
        with self._lock:
            for one in reversed(self._spare.copy()):
                if one[0] == owner and self._remove(one):
                    return one[1]
        return None

    def give(self, owner: Owner, cache: Any) -> None:
        """Keep it for `take`. No context and no engine uses it any more."""
        with self._lock:
            self._spare.append((owner, cache))
            same_gpu = [one for one in self._spare.copy() if one[0][1] == owner[1]]
            surplus = same_gpu[: -self._most]
            for one in surplus:  # destroyed at the return, where nobody waits
                self._remove(one)

    def _remove(self, one: tuple[Owner, Any]) -> bool:
        """Whether it was there."""
        for at, other in enumerate(self._spare):
            if other is one:
                del self._spare[at]
                return True
        return False

    def _forget(self) -> None:
        """A process that was forked has no use for those of the other one, and must not destroy them."""
        leak(self._spare)
        self._spare, self._lock = [], threading.RLock()
