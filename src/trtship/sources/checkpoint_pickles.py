"""Pickles of a checkpoint, looked through before torch reads them: for instructions that fill memory or take for ever.

`torch.load(weights_only=True)` calls no function of the file's choice, but it lets two things through. `bytearray(N)`
fills N bytes. A tuple that holds another tuple twice, which holds another twice, and so on, takes 2 ** depth steps to
hash when it is a key.
"""

from __future__ import annotations

import os
import pickletools
import struct
import zipfile
from collections.abc import Iterator
from io import BufferedReader, BytesIO
from typing import IO, Any

MAX_TUPLE_DEPTH = 20
MAX_PICKLE_BYTES = 64 * 2**20
# pickles in a file of torch's format before 1.6: its number, the version, the system, the content and the storages
LEGACY_PICKLES = 5
FILLS_MEMORY = ("__builtin__ bytearray", "builtins bytearray")


def danger_in(file: BufferedReader) -> str | None:
    """Return why a file that `torch.save` wrote must not be read, or None.

    What is no pickle is left to torch, which says so.

    Raises:
        struct.error: If an archive is cut short.
    """
    for data in _pickles(file):
        if isinstance(data, str):
            return data
        try:
            danger = _danger(data)
        except (ValueError, IndexError, KeyError, RecursionError, MemoryError, OverflowError):
            return None
        if danger is not None:
            return danger
    return None


def _pickles(file: BufferedReader) -> Iterator[IO[bytes] | str]:
    """The file's pickles, as streams at their beginning; a text where one is too large."""
    file.seek(0)
    if file.read(2) == b"PK":
        with zipfile.ZipFile(file) as archive:
            for entry in archive.infolist():
                if entry.filename.endswith(".pkl"):
                    if entry.file_size > MAX_PICKLE_BYTES:
                        yield f"a pickle of {entry.file_size} bytes"
                    # as torch reads it: without a look at the CRC, which torch may be told not to write
                    file.seek(entry.header_offset)
                    sizes = struct.unpack("<HH", file.read(30)[26:])
                    file.seek(sum(sizes), os.SEEK_CUR)
                    yield BytesIO(file.read(entry.file_size))
    else:
        file.seek(0)
        for _ in range(LEGACY_PICKLES):
            yield file  # each begins where the one before ended
    file.seek(0)


def _danger(data: IO[bytes]) -> str | None:
    """What is dangerous in one pickle, found with the depth of every tuple on pickle's stack."""
    stack: list[Any] = []
    memo: dict[Any, Any] = {}
    for operation, argument, _ in pickletools.genops(data):
        name = operation.name
        if name == "GLOBAL" and argument in FILLS_MEMORY:
            return "bytearray"
        if name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "DUP":
            stack.append(stack[-1])
        elif name == "MARK":
            stack.append(None)
        else:
            taken = _take(stack, operation)
            if name.startswith("TUPLE"):
                depth = 1 + max((each for each in taken if each is not None), default=0)
                if depth > MAX_TUPLE_DEPTH:
                    return f"tuples nested more than {MAX_TUPLE_DEPTH} deep"
                stack.append(depth)
            else:
                stack.extend(0 for _ in operation.stack_after)
    return None


def _take(stack: list[Any], operation: pickletools.OpcodeInfo) -> list[Any]:
    """Take from the stack what an operation takes: so many, or all down to the mark, and so many below it."""
    before = operation.stack_before
    taken: list[Any] = []
    count = len(before)
    if pickletools.markobject in before:
        count = before.index(pickletools.markobject)
        while (top := stack.pop()) is not None:
            taken.append(top)
    for _ in range(count):
        taken.append(stack.pop())
    return taken
