"""Host arrays through the GPU with copies beside the computing: a ring of buffers, and a stream for each direction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import numpy as np

from trtship.family.context import Context
from trtship.session.graphs import Use
from trtship.session.lane import Lane
from trtship.session.piece import Piece
from trtship.session.pool import Pool
from trtship.session.rig import Rig
from trtship.session.slot import HostArray, Slot

R = TypeVar("R")


class Pipe:
    """For one `map` at a time: `depth` items may be under way. Raises GpuMemoryError."""

    def __init__(self, rig: Rig, lanes: Pool[Lane], *, depth: int) -> None:
        self._rig, self._lanes, self.depth = rig, lanes, depth
        cuda = rig.cuda
        self._in, self._compute, self._out = (cuda.create_stream() for _ in range(3))
        self._stages = [_Stage(rig) for _ in range(depth)]
        self._next = 0

    def start(
        self,
        piece: Piece,
        sources: Sequence[HostArray],
        make: Callable[[], Sequence[HostArray]],
        wrap: Callable[[Sequence[HostArray]], R],
        *,
        poison: bool,
    ) -> Ticket[R]:
        """Enqueue one item. No more than `depth` tickets may be open. `make` gives arrays for the results, `wrap` what
        the ticket gives."""
        cuda, stage = self._rig.cuda, self._stages[self._next]
        with self._lanes.one() as lane:
            slot = stage.slot_for(piece, lane.context(piece))
        in_place = slot.load(sources, self._in)
        cuda.record(stage.loaded, self._in)
        cuda.wait(self._compute, stage.loaded)
        with self._lanes.one() as lane:
            lane.run(piece, slot.ins, slot.outs, self._compute, use=Use.RING, poison=poison)
        cuda.record(stage.computed, self._compute)
        cuda.wait(self._out, stage.computed)
        slot.unload(piece, self._out)
        cuda.record(stage.done, self._out)
        if in_place:  # the caller may fill the same memory anew for the next item
            cuda.wait_on_host(stage.loaded)
        self._next = (self._next + 1) % self.depth
        return Ticket(self._rig, stage, make, wrap)

    def drain(self) -> None:
        """Wait until nothing is under way."""
        for stream in (self._in, self._compute, self._out):
            self._rig.cuda.synchronize(stream)

    def close(self) -> None:
        self.drain()
        for stage in self._stages:
            stage.close()
        for stream in (self._in, self._compute, self._out):
            self._rig.cuda.destroy_stream(stream)


class _Stage:
    """One place in the ring: buffers, and what has become of them."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self.slot: Slot | None = None
        self.loaded, self.computed, self.done = (rig.cuda.create_event() for _ in range(3))

    def slot_for(self, piece: Piece, context: Context) -> Slot:
        if self.slot is None or not self.slot.fits(piece):
            self._free()
            self.slot = Slot(self._rig, piece, context)
        return self.slot

    def _free(self) -> None:
        if self.slot is not None:
            self._rig.cuda.wait_on_host(self.done)
            slot, self.slot = self.slot, None
            slot.free()

    def close(self) -> None:
        self._free()
        for event in (self.loaded, self.computed, self.done):
            self._rig.cuda.destroy_event(event)


class Ticket(Generic[R]):
    """A result that is being computed."""

    def __init__(
        self,
        rig: Rig,
        stage: _Stage,
        make: Callable[[], Sequence[HostArray]],
        wrap: Callable[[Sequence[HostArray]], R],
    ) -> None:
        self._rig, self._stage, self._make, self._wrap = rig, stage, make, wrap

    def result(self) -> R:
        """Wait for it. Raises GpuFaultError, DeviceError."""
        results: Sequence[np.ndarray[Any, Any]] = self._make()
        with self._rig.cuda.selected():
            self._rig.cuda.wait_on_host(self._stage.done)
        assert self._stage.slot is not None
        self._stage.slot.take(results)
        return self._wrap(results)

    def cancel(self) -> None:
        """It is computed to its end; `Pipe.drain` waits for that."""
