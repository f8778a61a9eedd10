"""Buffers for one run: on the GPU, and pinned on the host, where arrays of the host pass through."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from trtship.family.context import Context
from trtship.session.piece import Piece, nbytes
from trtship.session.rig import Rig
from trtship.session.staging import copied

HostArray = np.ndarray[Any, Any]


class Slot:
    """GPU buffers for the inputs and outputs of any piece of one profile, whose addresses stay; pinned ones beside them
    from the first host array on. Raises GpuMemoryError."""

    def __init__(self, rig: Rig, piece: Piece, context: Context) -> None:
        self._rig, self.profile = rig, piece.profile
        largest = [
            nbytes(rig.engine.profiles[piece.profile][spec.name][2], spec.dtype)
            for spec in rig.inputs  # by the plan's names: a session's specs have them too
        ]
        self._in_room = tuple(max(1, size, own) for size, own in zip(largest, piece.in_bytes, strict=True))
        self._out_room = tuple(
            max(1, context.largest_output(spec.name), own)
            for spec, own in zip(rig.outputs, piece.out_bytes, strict=True)
        )
        self._memory: list[tuple[int, int]] = []
        self._pinned: list[tuple[int, int]] = []
        try:
            for size in (*self._in_room, *self._out_room):
                self._memory.append((rig.allocate(size), size))
        except BaseException:
            self.free()
            raise
        addresses = tuple(address for address, _ in self._memory)
        self.ins, self.outs = addresses[: len(rig.inputs)], addresses[len(rig.inputs) :]

    def fits(self, piece: Piece) -> bool:
        """Whether a piece's tensors have room here."""
        return piece.profile == self.profile and all(
            need <= room
            for need, room in zip((*piece.in_bytes, *piece.out_bytes), (*self._in_room, *self._out_room), strict=True)
        )

    def load(self, sources: Sequence[HostArray], stream: int) -> bool:
        """Enqueue the copies of host arrays to the inputs' buffers. Those in pinned memory are copied from where they
        lie: true where there are such, which must not change before the stream has come so far."""
        cuda, in_place = self._rig.cuda, False
        for index, (source, address) in enumerate(zip(sources, self.ins, strict=True)):
            if source.flags.c_contiguous and source.nbytes and cuda.is_pinned(source.ctypes.data):
                cuda.to_device(address, source.ctypes.data, source.nbytes, stream)
                in_place = True
                continue
            host, _ = self._host(index)
            staged = _view(host, source)
            for offset, size in copied(staged, source):
                if size:
                    cuda.to_device(address + offset, host + offset, size, stream)
        return in_place

    def unload(self, piece: Piece, stream: int) -> None:
        """Enqueue the copies of the outputs to pinned memory."""
        for index, (address, size) in enumerate(zip(self.outs, piece.out_bytes, strict=True)):
            host, _ = self._host(len(self.ins) + index)
            if size:
                self._rig.cuda.to_host(host, address, size, stream)

    def take(self, results: Sequence[HostArray]) -> None:
        """Write what `unload` brought, once it is there, into arrays of the outputs' shapes."""
        for index, result in enumerate(results):
            host, _ = self._host(len(self.ins) + index)
            for _ in copied(result, _view(host, result)) if result.flags.c_contiguous else ():
                pass
            if not result.flags.c_contiguous:
                np.copyto(result, _view(host, result))

    def _host(self, index: int) -> tuple[int, int]:
        """The pinned memory of a tensor: its address and size."""
        if not self._pinned:
            for _, size in self._memory:
                self._pinned.append((self._rig.cuda.allocate_pinned(size), size))
                self._rig.ledger.take("pinned", size)
        return self._pinned[index]

    def free(self) -> None:
        """Nothing may run on it any more."""
        while self._memory:
            self._rig.free(*self._memory.pop())
        while self._pinned:
            address, size = self._pinned.pop()
            self._rig.ledger.give("pinned", size)
            self._rig.cuda.free_pinned(address)


def _view(address: int, like: HostArray) -> HostArray:
    """The memory at an address as an array of the shape and dtype of `like`, in C order."""
    memory = memoryview((ctypes.c_uint8 * max(like.nbytes, 1)).from_address(address))
    flat: HostArray = np.frombuffer(memory, np.uint8)[: like.nbytes]
    view: HostArray = flat.view(like.dtype).reshape(like.shape)
    return view
