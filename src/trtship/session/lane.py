"""One run at a time: the execution contexts that one caller uses, their CUDA graphs, and a stream of its own."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from trtship.errors import DeviceError, GpuFaultError, GpuMemoryError
from trtship.family.context import Context
from trtship.session.graphs import Addresses, Graphs, Use
from trtship.session.holdings import Holdings
from trtship.session.piece import Piece
from trtship.session.rig import Rig
from trtship.session.shelf import Shelf
from trtship.session.slot import HostArray, Slot


class Lane:
    """A context for each profile in use, and what was captured with it. It is held by one thread at a time; its runs
    follow each other on the GPU, whatever streams they are on.

    A piece is run eagerly the first time. From then on graphs replay it: on the caller's own addresses where those come
    again, by way of buffers of the lane's where they do not. A size that is not sure of a graph of its own runs in that
    of its bucket; the rows beyond its own are whatever an earlier run left there. (Beside the time there is a reason to
    run eagerly as seldom as may be: TensorRT for RTX 1.6.1 on an H100 keeps some 90 KiB of the host's memory, for good,
    each time that a context enqueues another shape than the one before. Several graphs of one context at several shapes
    are what NVIDIA's Triton server runs too: https://github.com/triton-inference-server/tensorrt_backend.)
    """

    def __init__(self, rig: Rig) -> None:
        self._rig, self._cuda = rig, rig.cuda
        self.held: deque[tuple[int, Any]] = deque()
        """Arrays that runs read, the oldest first, each with the event of its run."""
        self._spare_events: list[int] = []
        self.stream = rig.cuda.create_stream()
        self._shelf = Shelf(rig)
        self._holdings = Holdings(rig, self.stream, self._shelf.forget)
        self._pieces = self._shelf.pieces
        self._done = rig.cuda.create_event()  # of the last run
        self._gate = rig.cuda.create_event()  # of what the caller's stream has before a run
        self._last = self.stream

    # what every call does

    def run(
        self, piece: Piece, ins: Addresses, outs: Addresses, stream: int, *, use: Use = Use.CALLER, poison: bool = False
    ) -> None:
        """Enqueue a piece on device memory, in the order of `stream`; `use` says whose memory it is.

        Raises GpuMemoryError, GpuFaultError, DeviceError.
        """
        graphs = self._pieces.get(piece)
        if graphs is not None:
            addresses = ins + outs
            graph = graphs.kept.get(addresses)
            if graph is not None and graph.stale_at > time.monotonic():
                cuda = self._cuda
                if stream != self.stream or stream != self._last:  # a caller's handle may be a new stream's by now
                    cuda.wait(stream, self._done)
                if poison:
                    self._fill(piece, outs, stream)
                cuda.launch(graph.handle, stream)
                cuda.record(self._done, stream)
                self._last = stream
                shelf = self._shelf
                shelf.tick += 1
                graphs.runs += 1
                graph.used = shelf.tick
                return
        self._otherwise(piece, ins, outs, stream, use=use, poison=poison)

    def hold(self, arrays: Any) -> None:
        """Keep arrays alive that the last run reads, until it is done."""
        event = self._spare_events.pop() if self._spare_events else self._cuda.create_event()
        self.held.append((event, arrays))
        self._cuda.record(event, self._last)

    def settle(self, *, most: int = 0) -> None:
        """Let go of what is held, but for what the last `most` runs read; wait for the others."""
        while len(self.held) > most:
            self._cuda.wait_on_host(self.held[0][0])
            event, _ = self.held.popleft()
            self._spare_events.append(event)

    def run_on_host(
        self, piece: Piece, sources: Sequence[HostArray], results: Sequence[HostArray], *, poison: bool
    ) -> None:
        """Run a piece on arrays of the host, and wait for it."""
        if piece.bucket is not None:
            self._shelf.of(piece).runs += 1
        ran, slot = self._buffered(piece)
        if self._last != self.stream:
            self._cuda.wait(self.stream, self._done)
        slot.load(sources, self.stream)
        self.run(ran, slot.ins, slot.outs, self.stream, use=Use.LANE, poison=poison)
        slot.unload(piece, self.stream)
        self._cuda.synchronize(self.stream)
        slot.take(results)

    # what only some calls do

    def _buffered(self, piece: Piece) -> tuple[Piece, Slot]:
        """What a piece runs as by way of the lane's buffers, and those."""
        ran = self._shelf.stand_in(piece)
        if ran is not piece:
            try:
                self.context(ran)
                return ran, self._holdings.slot(ran, self._done)
            except GpuMemoryError:  # the piece itself takes less
                piece.bucket = None
        return piece, self._holdings.slot(piece, self._done)

    def context(self, piece: Piece) -> Context:
        """The piece's context, and its outputs' shapes."""
        return self._holdings.context(piece)

    def _otherwise(self, piece: Piece, ins: Addresses, outs: Addresses, stream: int, *, use: Use, poison: bool) -> None:
        self.context(piece)
        shelf = self._shelf
        graphs = shelf.of(piece)
        graphs.runs += 1
        shelf.tick += 1
        addresses = ins + outs
        again = graphs.runs > 1 or piece.is_bucket
        if self._rig.graphs and (again or piece.bucket is not None):
            wanted = addresses in graphs.kept
            comes_again = again and (use is not Use.CALLER or graphs.wants(addresses, shelf.tick))
            if wanted or (comes_again and shelf.has_room(use)):
                self._capture(piece, graphs, ins, outs, stream, use=use, poison=poison)
                return
            if use is not Use.LANE and self._by_copies(piece, ins, outs, stream, poison=poison):
                return
        self._enter(stream)
        self._eager(piece, ins, outs, poison=poison)
        self._leave(stream)

    def _by_copies(self, piece: Piece, ins: Addresses, outs: Addresses, stream: int, *, poison: bool) -> bool:
        """Through the graph of the lane's own buffers; False where there is no room for them, or it."""
        try:
            ran, slot = self._buffered(piece)
        except GpuMemoryError:
            return False
        graphs = self._shelf.of(ran)
        graph = graphs.kept.get(slot.ins + slot.outs)
        if graph is None and not self._shelf.has_room(Use.LANE):
            return False
        cuda = self._cuda
        cuda.wait(stream, self._done)
        for target, source, size in zip(slot.ins, ins, piece.in_bytes, strict=True):
            cuda.copy(target, source, size, stream)
        if graph is None or graph.stale_at <= time.monotonic():
            cuda.record(self._done, stream)
            self._last = stream
            self._capture(ran, graphs, slot.ins, slot.outs, stream, use=Use.LANE, poison=poison)
        else:
            if poison:
                self._fill(ran, slot.outs, stream)
            cuda.launch(graph.handle, stream)
            graph.used = self._shelf.tick
        for target, source, size in zip(outs, slot.outs, piece.out_bytes, strict=True):
            cuda.copy(target, source, size, stream)
        cuda.record(self._done, stream)
        self._last = stream
        return True

    def _capture(
        self, piece: Piece, graphs: Graphs, ins: Addresses, outs: Addresses, stream: int, *, use: Use, poison: bool
    ) -> None:
        """Run eagerly, as must be before a capture, and keep a graph of it for the next time."""
        self._enter(stream)
        self._eager(piece, ins, outs, poison=poison)
        self._leave(stream)
        self._cuda.synchronize(self.stream)
        addresses, context = ins + outs, self.context(piece)
        if addresses not in graphs.kept:
            self._shelf.make_room(piece, use)
        named = dict(zip(self._rig.names, addresses, strict=True))
        try:
            graphs.capture(
                addresses,
                lambda: context.execute(named, self.stream),
                self.stream,
                fixed=piece.fixed,
                tick=self._shelf.tick,
                use=use,
            )
        except GpuFaultError:
            raise
        except GpuMemoryError:  # it says nothing of the plan
            return
        except DeviceError as error:
            self._rig.captured(f"{error.what} ({error.why})")
            return
        self._rig.captured()
        self._rig.on_kernels(True)

    def _eager(self, piece: Piece, ins: Addresses, outs: Addresses, *, poison: bool) -> None:
        if poison:
            self._fill(piece, outs, self.stream)
        context = self.context(piece)
        context.set_shapes(piece.shapes)
        with self._holdings.told_of_memory(0):
            context.execute(dict(zip(self._rig.names, ins + outs, strict=True)), self.stream)

    def _enter(self, stream: int) -> None:
        """The lane's stream goes on after the last run, and after what the caller's stream has."""
        if self._last != self.stream:
            self._cuda.wait(self.stream, self._done)
        if stream != self.stream:
            self._cuda.record(self._gate, stream)
            self._cuda.wait(self.stream, self._gate)

    def _leave(self, stream: int) -> None:
        """The caller's stream goes on after the lane's."""
        self._cuda.record(self._done, self.stream)
        self._last = self.stream
        if stream != self.stream:
            self._cuda.wait(stream, self._done)

    def _fill(self, piece: Piece, outs: Addresses, stream: int) -> None:
        for address, size in zip(outs, piece.out_bytes, strict=True):
            self._cuda.fill(address, 0xFF, size, stream)

    def trim(self) -> None:
        """Free all graphs, contexts and buffers."""
        self.settle()
        self._cuda.wait_on_host(self._done)
        self._shelf.clear()
        self._holdings.free()

    def give_up(self) -> None:
        """Free what it has: it will not be used any more. What cannot be freed now is at the end, and where CUDA is
        lost, whoever calls next is told."""
        with suppress(DeviceError):
            self.trim()

    def close(self) -> None:
        self.trim()
        while self._spare_events:
            self._cuda.destroy_event(self._spare_events.pop())
        self._cuda.destroy_event(self._done)
        self._cuda.destroy_event(self._gate)
        self._cuda.destroy_stream(self.stream)
