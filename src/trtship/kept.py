"""A file of the user's cache that is worth keeping and may be lost: whole, hash checked, its folder bounded."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path

from trtship.errors import OutputError
from trtship.files import read_regular, whole_file

NONE, KEPT = "none kept", "kept"
_DIGEST_BYTES = hashlib.sha256().digest_size


class Kept:
    """Bytes of one `kind` in a file, with their SHA-256 at its head. `limit` is how many bytes its folder may take:
    the files least lately used make way.

    `state` says what became of them: `"none kept"`, `"kept"`, or why they could not be."""

    def __init__(self, file: Path, kind: str, *, limit: int) -> None:
        self.file, self.state = file, NONE
        self._magic, self._limit, self._size = f"trtship {kind} 1\n".encode(), limit, 0

    def load(self) -> bytes:
        """What was kept; nothing where there is none. A file that is not as it was written is discarded."""
        try:
            data = read_regular(self.file)
        except OSError:
            return b""
        head = len(self._magic) + _DIGEST_BYTES
        digest, found = data[len(self._magic) : head], data[head:]
        if not data.startswith(self._magic) or hashlib.sha256(found).digest() != digest:
            with suppress(OSError):
                self.file.unlink()
            return b""
        with suppress(OSError):
            os.utime(self.file)
        self._size, self.state = len(found), KEPT
        return found

    def keep(self, data: bytes) -> None:
        """Write them where they are more than was loaded or kept last: who only loaded them may serialize other bytes.
        A place that cannot be written to is no error: `state` has the reason."""
        if len(data) <= self._size:
            return
        try:
            with whole_file(self.file) as draft:
                draft.write_bytes(self._magic + hashlib.sha256(data).digest() + data)
            self._size, self.state = len(data), KEPT
            self._make_way()
        except (OutputError, OSError) as error:
            self.state = f"not kept: {error}"

    def forget(self) -> None:
        """Remove what was kept: nobody can use it."""
        with suppress(OSError):
            self.file.unlink()
        self._size, self.state = 0, NONE

    def _make_way(self) -> None:
        """Remove the files least lately used, beyond the limit; never this one."""
        found = []
        for file in self.file.parent.iterdir():
            with suppress(OSError):  # another process removed it
                if file.is_file() and file != self.file:
                    found.append((file.stat().st_mtime, file.stat().st_size, file))
        taken = self.file.stat().st_size
        for _, size, file in sorted(found, reverse=True):
            taken += size
            if taken > self._limit:
                with suppress(OSError):
                    file.unlink()
