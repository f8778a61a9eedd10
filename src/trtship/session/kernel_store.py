"""Compiled kernels, kept in the user's cache for the next process that runs the same plan on the same GPU.

TensorRT for RTX compiles a plan's kernels when it is loaded, which takes seconds; from its runtime cache it takes them
ready made.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from trtship.errors import OutputError
from trtship.files import cache_root, whole_file
from trtship.gpu import Gpu

MAGIC = b"trtship kernels 1\n"
_DIGEST_BYTES = hashlib.sha256().digest_size
LIMIT = 4 << 30
"""Bytes that the folder may take: those least lately used make way."""


class KernelStore:
    """One plan's kernels on one GPU: a file under `cache_root()/kernels`, named after all that they depend on, with
    their SHA-256 at its head.

    `state` says what became of them: `"none kept"`, `"kept"`, or why they could not be."""

    def __init__(
        self,
        plan: bytes,
        gpu: Gpu,
        *,
        runtime: str,
        variables: Mapping[str, str],
        digest: str | None = None,
        root: Path | None = None,
        limit: int = LIMIT,
    ) -> None:
        """`runtime` is the TensorRT that compiles, `variables` are the environment's that it heeds; `digest` is the
        plan's SHA-256, where it is known."""
        inputs = {
            "plan": digest or hashlib.sha256(plan).hexdigest(),
            "runtime": runtime,
            "variables": dict(variables),
            "gpu": [gpu.name, gpu.compute_capability, gpu.driver],
        }
        name = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
        self.file = (root or cache_root()) / "kernels" / name
        self.state = "none kept"
        self._limit = limit
        self._size = 0

    def load(self) -> bytes:
        """What was kept; nothing where there is none. A file that is not as it was written is discarded."""
        try:
            data = self.file.read_bytes()
        except OSError:
            return b""
        digest, kernels = data[len(MAGIC) :][:_DIGEST_BYTES], data[len(MAGIC) + _DIGEST_BYTES :]
        if not data.startswith(MAGIC) or hashlib.sha256(kernels).digest() != digest:
            with suppress(OSError):
                self.file.unlink()
            return b""
        with suppress(OSError):
            os.utime(self.file)
        self._size, self.state = len(kernels), "kept"
        return kernels

    def keep(self, kernels: bytes) -> None:
        """Write them where they are more than was loaded or kept last: a process that only loaded them may serialize
        other bytes. A place that cannot be written to is no error: the next process compiles again, and `state` has the
        reason."""
        if len(kernels) <= self._size:
            return
        digest = hashlib.sha256(kernels).digest()
        try:
            with whole_file(self.file) as draft:
                draft.write_bytes(MAGIC + digest + kernels)
            self._size, self.state = len(kernels), "kept"
            self._make_way()
        except (OutputError, OSError) as error:
            self.state = f"not kept: {error}"

    def forget(self) -> None:
        """Remove what was kept: TensorRT could not use it."""
        with suppress(OSError):
            self.file.unlink()
        self._size, self.state = 0, "none kept"

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
