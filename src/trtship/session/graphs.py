"""The CUDA graphs of one context: each replays one piece at the addresses that it was captured with."""

from __future__ import annotations

from collections.abc import Callable

from trtship.session.rig import Rig

Addresses = tuple[int, ...]
MOST = 32 << 20
"""Bytes that one graph is taken to need, at most."""
DIRECT = 4
"""Graphs of one piece at addresses of the caller's own, beside that of the lane's buffers."""
IDLE = 256
"""Runs after which one that was not launched may make way for one at other addresses."""


class Graph:
    """A captured graph. `used` is the context's run that launched it last."""

    __slots__ = ("again", "handle", "size", "stale_at", "used")

    def __init__(self, handle: int, *, size: int, stale_at: float, again: int, used: int) -> None:
        self.handle, self.size, self.stale_at, self.again, self.used = handle, size, stale_at, again, used


class Graphs:
    """The graphs of one piece on one lane, by the addresses of its inputs and outputs.

    Addresses that the caller brings are worth a graph of their own when they come again; others are copied from and to
    buffers that have one.
    """

    __slots__ = ("_rig", "_seen", "kept", "runs")

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self.kept: dict[Addresses, Graph] = {}
        self._seen: set[Addresses] = set()
        self.runs = 0

    def wants(self, addresses: Addresses, tick: int) -> bool:
        """Whether addresses that have no graph are worth one: they were seen before, and those that have one are few,
        or not in use any more."""
        if addresses not in self._seen:
            if len(self._seen) >= 16 * DIRECT:
                self._seen.clear()
            self._seen.add(addresses)
            return False
        return len(self.kept) <= DIRECT or tick - self._idlest().used > IDLE

    def capture(
        self, addresses: Addresses, enqueue: Callable[[], None], stream: int, *, fixed: bool, tick: int
    ) -> None:
        """Keep a graph of what `enqueue` puts on the stream, in place of one of these addresses. Raises DeviceError."""
        cuda, before = self._rig.cuda, self.kept.get(addresses)
        again = before.again + 1 if before else 0
        free = cuda.free_memory()
        handle = cuda.capture(enqueue, stream)
        size = min(max(0, free - cuda.free_memory()), MOST)  # others take and give memory meanwhile
        try:
            self._rig.ledger.take("graphs", size)
        except BaseException:
            cuda.destroy_graph(handle)
            raise
        self.drop(addresses)
        if len(self.kept) > DIRECT:
            self.drop(next(at for at, graph in self.kept.items() if graph is self._idlest()))
        stale_at = self._rig.stale_at(fixed=fixed, again=again)
        self.kept[addresses] = Graph(handle, size=size, stale_at=stale_at, again=again, used=tick)

    def _idlest(self) -> Graph:
        return min(self.kept.values(), key=lambda graph: graph.used)

    def drop(self, addresses: Addresses) -> None:
        """Free one that does not run."""
        graph = self.kept.pop(addresses, None)
        if graph is not None:
            self._rig.ledger.give("graphs", graph.size)
            self._rig.cuda.destroy_graph(graph.handle)

    def clear(self) -> None:
        for addresses in list(self.kept):
            self.drop(addresses)
        self._seen.clear()
