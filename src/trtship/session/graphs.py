"""The CUDA graphs of one lane: each replays one piece at the addresses that it was captured with."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from trtship.session.rig import Rig

Addresses = tuple[int, ...]
MOST = 32 << 20
"""Bytes that one graph is taken to need, at most."""
DIRECT = 4
"""Graphs of one piece at addresses of callers' own, beside the others."""
IDLE = 256
"""Runs after which one of those that was not launched may make way for one at other addresses."""


class Use(Enum):
    """Whose addresses a run has."""

    LANE = "the lane's own buffers, by which every call of the piece can go"
    RING = "a place in the ring of one `map`: they will come again while it lasts"
    CALLER = "a caller's: nobody knows whether they come again"


class Graph:
    """A captured graph. `used` is the lane's run that launched it last; `use` says whose addresses it has."""

    __slots__ = ("again", "handle", "size", "stale_at", "use", "used")

    def __init__(self, handle: int, *, size: int, stale_at: float, again: int, used: int, use: Use) -> None:
        self.handle, self.size, self.stale_at, self.again, self.used = handle, size, stale_at, again, used
        self.use = use


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
        used = [graph.used for graph in self.kept.values() if graph.use is Use.CALLER]
        return len(used) < DIRECT or tick - min(used) > IDLE

    def capture(
        self, addresses: Addresses, enqueue: Callable[[], None], stream: int, *, fixed: bool, tick: int, use: Use
    ) -> None:
        """Keep a graph of what `enqueue` puts on the stream, in place of one of these addresses. Raises DeviceError."""
        cuda, before = self._rig.cuda, self.kept.get(addresses)
        again = before.again + 1 if before else 0
        with self._rig.engine.turn:  # before the capture begins: nobody waits within one
            free = cuda.free_memory()
            handle = cuda.capture(enqueue, stream)
            size = min(max(0, free - cuda.free_memory()), MOST)  # others take and give memory meanwhile
        try:
            self._rig.ledger.take("graphs", size)
        except BaseException:
            cuda.destroy_graph(handle)
            raise
        self.drop(addresses)
        if use is Use.CALLER:
            others = sorted((graph.used, at) for at, graph in self.kept.items() if graph.use is Use.CALLER)
            for _, at in others[: max(0, len(others) - DIRECT + 1)]:
                self.drop(at)
        stale_at = self._rig.stale_at(fixed=fixed, again=again)
        self.kept[addresses] = Graph(handle, size=size, stale_at=stale_at, again=again, used=tick, use=use)

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
