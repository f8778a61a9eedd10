"""What a lane holds of the GPU's memory: a context and buffers for each profile in use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from trtship.errors import DeviceError, GpuFaultError, GpuMemoryError
from trtship.family.context import Context
from trtship.leak import leak
from trtship.session.piece import Piece
from trtship.session.rig import Rig
from trtship.session.slot import Slot

SPARE = 32 << 20
"""Bytes of free memory below which TensorRT may fail for want of it."""


class Holdings:
    """Made when they are first needed, on the lane's `stream`, and counted. Raises GpuMemoryError, DeviceError.

    `on_free` is told the addresses of buffers that are freed: no graph may use them any more."""

    def __init__(self, rig: Rig, stream: int, on_free: Callable[[tuple[int, ...]], None]) -> None:
        self._rig, self._stream, self._on_free = rig, stream, on_free
        self._contexts: dict[int, Context] = {}
        self._slots: dict[int, Slot] = {}

    def context(self, piece: Piece) -> Context:
        """The context for a piece, whose outputs' shapes are known from then on. The first for a profile takes seconds
        where kernels are to be compiled."""
        if not piece.is_known:
            self._rig.engine.kernels.ask((piece.profile, *piece.shapes.values()))
        context = self._contexts.get(piece.profile) or self._made(piece.profile)
        if not piece.is_known:
            piece.learn(self._rig.outputs, context.set_shapes(piece.shapes))
        return context

    def _made(self, profile: int) -> Context:
        rig = self._rig
        size = rig.engine.context_size(profile)
        context = None
        rig.ledger.take("contexts", size)
        try:
            with self.told_of_memory(size):
                context = rig.engine.create_context(profile, self._stream)
                rig.cuda.synchronize(self._stream)
        except GpuFaultError:
            leak(context)
            raise
        except BaseException:  # the traceback has it, and the engine must not go before it
            if context is not None:
                context.close()
            rig.ledger.give("contexts", size)
            raise
        self._contexts[profile] = context
        rig.on_kernels(False)
        return context

    @contextmanager
    def told_of_memory(self, size: int) -> Iterator[None]:
        """What TensorRT fails in is put down to memory where there is too little of it for `size` bytes more, whatever
        its log says; and to CUDA, where CUDA has a reason of its own."""
        try:
            yield
        except GpuMemoryError:
            raise
        except DeviceError as error:
            self._rig.cuda.synchronize(self._stream)
            if self._rig.cuda.free_memory() < size + SPARE:
                raise GpuMemoryError(error.what, why=f"the GPU's memory is full; {error.why}", do=error.do) from error
            raise

    def slot(self, piece: Piece, last: int) -> Slot:
        """Buffers for a piece; `last` is the event of the lane's last run, which may use those that make way."""
        slot = self._slots.get(piece.profile)
        if slot is None or not slot.fits(piece):
            context = self.context(piece)
            if slot is not None:
                self._rig.cuda.wait_on_host(last)
                del self._slots[piece.profile]
                self._on_free(slot.ins + slot.outs)
                slot.free()
            slot = self._slots[piece.profile] = Slot(self._rig, piece, context)
            slot.clear(self._stream)  # rows beyond a batch's own are computed too: an index there must be one
            self._rig.cuda.synchronize(self._stream)
        return slot

    def free(self) -> None:
        """Nothing of the lane runs any more."""
        while self._slots:
            self._slots.popitem()[1].free()
        while self._contexts:
            _, context = self._contexts.popitem()
            context.close()
            self._rig.ledger.give("contexts", context.size)
