"""Buffers for one run: on the GPU, and pinned on the host, where arrays of the host pass through."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from trtship.errors import GpuMemoryError
from trtship.family.context import Context
from trtship.session.piece import Piece, nbytes
from trtship.session.rig import Rig
from trtship.session.staging import copied

HostArray = np.ndarray[Any, Any]
ROOM = 256 << 20
"""Bytes that buffers for a profile's largest tensors may take; where they would take more, they are as large as a piece
needs, and made anew for a larger one."""


class Slot:
    """GPU buffers for the inputs and outputs of any piece of one profile, and of every other that has room there; their
    addresses stay. Pinned ones are beside them from the first host array on. Raises GpuMemoryError."""

    def __init__(self, rig: Rig, piece: Piece, context: Context) -> None:
        self._rig = rig
        profile = rig.engine.profiles[piece.profile]
        largest = [nbytes(profile[spec.name][2], spec.dtype) for spec in rig.inputs]
        largest += [context.largest_output(spec.name) for spec in rig.outputs]
        own = (*piece.in_bytes, *piece.out_bytes)
        rooms = [max(size, needed) for size, needed in zip(largest, own, strict=True)]
        self._rooms = rooms if sum(rooms) <= ROOM else list(own)
        self._memory: list[tuple[int, int]] = []
        self._pinned: dict[int, tuple[int, int]] = {}
        try:
            self._allocate()
        except GpuMemoryError:
            if self._rooms == list(own):
                raise
            self._rooms = list(own)
            self._allocate()
        addresses = tuple(address for address, _ in self._memory)
        self.ins, self.outs = addresses[: len(rig.inputs)], addresses[len(rig.inputs) :]

    def _allocate(self) -> None:
        try:
            for size in (max(1, room) for room in self._rooms):  # no address may be null
                self._memory.append((self._rig.allocate(size), size))
        except BaseException:
            self.free()
            raise

    def clear(self, stream: int) -> None:
        """Enqueue zeros into the inputs' buffers."""
        for address, size in self._memory[: len(self.ins)]:
            self._rig.cuda.fill(address, 0, size, stream)

    def fits(self, piece: Piece) -> bool:
        """Whether a piece's tensors have room here."""
        needed = (*piece.in_bytes, *piece.out_bytes)
        return all(n <= room for n, room in zip(needed, self._rooms, strict=True))

    def load(self, sources: Sequence[HostArray], stream: int) -> bool:
        """Enqueue the copies of host arrays to the inputs' buffers. Those in pinned memory are copied from where they
        lie: true where there are such, which must not change before the stream has come so far."""
        cuda, in_place = self._rig.cuda, False
        for index, (source, address) in enumerate(zip(sources, self.ins, strict=True)):
            if source.flags.c_contiguous and source.nbytes and cuda.is_pinned(source.ctypes.data):
                cuda.to_device(address, source.ctypes.data, source.nbytes, stream)
                in_place = True
                continue
            host = self._host(index)
            staged = _view(host, source)
            for offset, size in copied(staged, source):
                if size:
                    cuda.to_device(address + offset, host + offset, size, stream)
        return in_place

    def unload(self, piece: Piece, stream: int) -> None:
        """Enqueue the copies of the outputs to pinned memory."""
        for index, (address, size) in enumerate(zip(self.outs, piece.out_bytes, strict=True)):
            host = self._host(len(self.ins) + index)
            if size:
                self._rig.cuda.to_host(host, address, size, stream)

    def take(self, results: Sequence[HostArray]) -> None:
        """Write what `unload` brought, once it is there, into arrays of the outputs' shapes."""
        for index, result in enumerate(results):
            host = self._host(len(self.ins) + index)
            for _ in copied(result, _view(host, result)) if result.flags.c_contiguous else ():
                pass
            if not result.flags.c_contiguous:
                np.copyto(result, _view(host, result))

    def _host(self, index: int) -> int:
        """The address of the pinned memory of a tensor."""
        if index not in self._pinned:
            size = self._memory[index][1]
            self._pinned[index] = (self._rig.cuda.allocate_pinned(size), size)
            self._rig.ledger.take("pinned", size)
        return self._pinned[index][0]

    def free(self) -> None:
        """Nothing may run on it any more."""
        while self._memory:
            self._rig.free(*self._memory.pop())
        while self._pinned:
            _, (address, size) = self._pinned.popitem()
            self._rig.ledger.give("pinned", size)
            self._rig.cuda.free_pinned(address)


def _view(address: int, like: HostArray) -> HostArray:
    """The memory at an address as an array of the shape and dtype of `like`, in C order."""
    memory = memoryview((ctypes.c_uint8 * max(like.nbytes, 1)).from_address(address))
    flat: HostArray = np.frombuffer(memory, np.uint8)[: like.nbytes]
    view: HostArray = flat.view(like.dtype).reshape(like.shape)
    return view
