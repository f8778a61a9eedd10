"""One run at a time: the execution contexts that one caller uses, their CUDA graphs, and a stream of its own."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from trtship.errors import DeviceError, GpuFaultError, GpuMemoryError
from trtship.family.context import Context
from trtship.session.graphs import Addresses, Graph, Graphs
from trtship.session.piece import Piece
from trtship.session.rig import Rig
from trtship.session.slot import HostArray, Slot

PIECES = 256
"""Pieces that are remembered though they have no graph."""

PATIENCE = 8
"""Times the number of graphs that are kept: runs after which one that was not used may make way."""

SPARE = 32 << 20
"""Bytes of free memory below which TensorRT may fail for want of it."""


class Lane:
    """A context for each profile in use, and what was captured with it. It is held by one thread at a time; its runs
    follow each other on the GPU, whatever streams they are on.

    A piece is run eagerly the first time. From then on graphs replay it: on the caller's own addresses where those come
    again, by way of buffers of the lane's where they do not. (Several graphs of one context at several shapes are what
    NVIDIA's Triton server runs too: https://github.com/triton-inference-server/tensorrt_backend.)
    """

    def __init__(self, rig: Rig) -> None:
        self._rig, self._cuda = rig, rig.cuda
        self._contexts: dict[int, Context] = {}
        self._slots: dict[int, Slot] = {}
        self._pieces: dict[Piece, Graphs] = {}
        self._tick = 0
        self.held: Any = None
        self.stream = rig.cuda.create_stream()
        self._done = rig.cuda.create_event()  # of the last run
        self._gate = rig.cuda.create_event()  # of what the caller's stream has before a run
        self._last = self.stream

    # what every call does

    def run(
        self, piece: Piece, ins: Addresses, outs: Addresses, stream: int, *, steady: bool = False, poison: bool = False
    ) -> None:
        """Enqueue a piece on device memory, in the order of `stream`. `steady`: these addresses will come again.

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
                self._tick += 1
                graphs.runs += 1
                graph.used = self._tick
                return
        self._otherwise(piece, ins, outs, stream, steady=steady, poison=poison)

    def hold(self, arrays: Any) -> None:
        """Keep arrays alive that the last run reads, until it is done."""
        self.held = arrays

    def settle(self) -> None:
        """Wait for the run that reads what is held, and let go of it."""
        if self.held is not None:
            self._cuda.wait_on_host(self._done)
            self.held = None

    def run_on_host(
        self, piece: Piece, sources: Sequence[HostArray], results: Sequence[HostArray], *, poison: bool
    ) -> None:
        """Run a piece on arrays of the host, and wait for it."""
        self.learn(piece)
        slot = self._slot(piece)
        if self._last != self.stream:
            self._cuda.wait(self.stream, self._done)
        slot.load(sources, self.stream)
        self.run(piece, slot.ins, slot.outs, self.stream, steady=True, poison=poison)
        slot.unload(piece, self.stream)
        self._cuda.synchronize(self.stream)
        slot.take(results)

    def run_bare(self, piece: Piece, ins: Addresses, outs: Addresses, stream: int) -> None:
        """Enqueue a piece, and nothing else, on a stream that somebody captures. That graph may not be launched while
        the session is called: both use this lane's memory."""
        context = self._context(piece)
        context.set_shapes(piece.shapes)
        context.execute(dict(zip(self._rig.names, ins + outs, strict=True)), stream)

    # what only some calls do

    def learn(self, piece: Piece) -> None:
        """Make the piece's context, which takes seconds where kernels are to be compiled, and its outputs' shapes."""
        context = self._context(piece)
        if not piece.is_known:
            piece.learn(self._rig.outputs, context.set_shapes(piece.shapes))

    def _otherwise(
        self, piece: Piece, ins: Addresses, outs: Addresses, stream: int, *, steady: bool, poison: bool
    ) -> None:
        self.learn(piece)
        graphs = self._pieces.get(piece)
        if graphs is None:
            if len(self._pieces) >= PIECES:
                self._pieces = {piece: graphs for piece, graphs in self._pieces.items() if graphs.kept}
            graphs = self._pieces[piece] = Graphs(self._rig)
        graphs.runs += 1
        self._tick += 1
        addresses = ins + outs
        if self._rig.graphs and graphs.runs > 1:
            if addresses in graphs.kept or ((steady or graphs.wants(addresses, self._tick)) and self._has_room()):
                self._capture(piece, graphs, ins, outs, stream, poison=poison)
                return
            if not steady and self._by_copies(piece, graphs, ins, outs, stream, poison=poison):
                return
        self._enter(stream)
        self._eager(piece, ins, outs, poison=poison)
        self._leave(stream)

    def _by_copies(
        self, piece: Piece, graphs: Graphs, ins: Addresses, outs: Addresses, stream: int, *, poison: bool
    ) -> bool:
        """Through the graph of the lane's own buffers; False where there is no room for them, or it."""
        try:
            slot = self._slot(piece)
        except GpuMemoryError:
            return False
        graph = graphs.kept.get(slot.ins + slot.outs)
        if graph is None and not self._has_room():
            return False
        cuda = self._cuda
        cuda.wait(stream, self._done)
        for target, source, size in zip(slot.ins, ins, piece.in_bytes, strict=True):
            cuda.copy(target, source, size, stream)
        if graph is None or graph.stale_at <= time.monotonic():
            cuda.record(self._done, stream)
            self._last = stream
            self._capture(piece, graphs, slot.ins, slot.outs, stream, poison=poison)
        else:
            if poison:
                self._fill(piece, slot.outs, stream)
            cuda.launch(graph.handle, stream)
            graph.used = self._tick
        for target, source, size in zip(outs, slot.outs, piece.out_bytes, strict=True):
            cuda.copy(target, source, size, stream)
        cuda.record(self._done, stream)
        self._last = stream
        return True

    def _capture(
        self, piece: Piece, graphs: Graphs, ins: Addresses, outs: Addresses, stream: int, *, poison: bool
    ) -> None:
        """Run eagerly, as must be before a capture, and keep a graph of it for the next time."""
        self._enter(stream)
        self._eager(piece, ins, outs, poison=poison)
        self._leave(stream)
        cuda, context = self._cuda, self._contexts[piece.profile]
        cuda.synchronize(self.stream)
        if ins + outs not in graphs.kept:
            self._evict()
        addresses = dict(zip(self._rig.names, ins + outs, strict=True))
        try:
            graphs.capture(
                ins + outs,
                lambda: context.execute(addresses, self.stream),
                self.stream,
                fixed=piece.fixed,
                tick=self._tick,
            )
        except GpuFaultError:
            raise
        except DeviceError as error:
            self._rig.captured(f"{error.what} ({error.why})")
            return
        self._rig.captured()
        self._rig.on_kernels(True)

    def _has_room(self) -> bool:
        """Whether one more graph may be kept: there are fewer than may be, or the least lately used has not been used
        for so long that its place is better given to another. (To make room at every call would cost more than it
        saves.)"""
        used = [graph.used for graphs in self._pieces.values() for graph in graphs.kept.values()]
        return len(used) < self._rig.graphs or self._tick - min(used) > PATIENCE * self._rig.graphs

    def _evict(self) -> None:
        """Make room for one more graph. Nothing of this lane runs now."""
        kept: list[tuple[Graph, Graphs, Addresses]] = [
            (graph, graphs, addresses) for graphs in self._pieces.values() for addresses, graph in graphs.kept.items()
        ]
        kept.sort(key=lambda one: one[0].used)
        for _, graphs, addresses in kept[: max(0, len(kept) - self._rig.graphs + 1)]:
            graphs.drop(addresses)

    def _eager(self, piece: Piece, ins: Addresses, outs: Addresses, *, poison: bool) -> None:
        if poison:
            self._fill(piece, outs, self.stream)
        context = self._contexts[piece.profile]
        context.set_shapes(piece.shapes)
        with self._told_of_memory(0):
            context.execute(dict(zip(self._rig.names, ins + outs, strict=True)), self.stream)

    @contextmanager
    def _told_of_memory(self, size: int) -> Iterator[None]:
        """What TensorRT fails in is put down to memory where there is too little of it for `size` bytes more, whatever
        its log says; and to CUDA, where CUDA has a reason of its own."""
        try:
            yield
        except GpuMemoryError:
            raise
        except DeviceError as error:
            self._cuda.synchronize(self.stream)
            if self._cuda.free_memory() < size + SPARE:
                raise GpuMemoryError(error.what, why=f"the GPU's memory is full; {error.why}", do=error.do) from error
            raise

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

    # what it holds

    def _context(self, piece: Piece) -> Context:
        context = self._contexts.get(piece.profile)
        if context is None:
            rig = self._rig
            size = rig.engine.context_size(piece.profile)
            rig.ledger.take("contexts", size)
            try:
                with self._told_of_memory(size):
                    context = rig.engine.create_context(piece.profile, self.stream)
                    self._cuda.synchronize(self.stream)
            except BaseException:
                rig.ledger.give("contexts", size)
                raise
            self._contexts[piece.profile] = context
            rig.on_kernels(False)
        return context

    def context_of(self, piece: Piece) -> Context:
        """For what is asked of a context itself, such as its layers' times."""
        return self._context(piece)

    def _slot(self, piece: Piece) -> Slot:
        slot = self._slots.get(piece.profile)
        if slot is None or not slot.fits(piece):
            if slot is not None:
                self._cuda.wait_on_host(self._done)
                del self._slots[piece.profile]
                slot.free()
            slot = self._slots[piece.profile] = Slot(self._rig, piece, self._contexts[piece.profile])
        return slot

    def trim(self, *, keep: int | None = None) -> None:
        """Free all graphs, and the contexts and buffers of every profile but `keep`."""
        self._cuda.wait_on_host(self._done)
        self.held = None
        for graphs in self._pieces.values():
            graphs.clear()
        for profile in [profile for profile in self._slots if profile != keep]:
            self._slots.pop(profile).free()
        for profile in [profile for profile in self._contexts if profile != keep]:
            self._rig.ledger.give("contexts", self._contexts.pop(profile).size)
        self._pieces = {piece: graphs for piece, graphs in self._pieces.items() if piece.profile == keep}

    def close(self) -> None:
        self.trim()
        self._cuda.destroy_event(self._done)
        self._cuda.destroy_event(self._gate)
        self._cuda.destroy_stream(self.stream)
