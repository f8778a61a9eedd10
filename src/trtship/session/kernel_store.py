"""Compiled kernels, kept in the user's cache for the next process that runs the same plan on the same GPU.

TensorRT for RTX compiles a plan's kernels when it is loaded, which takes seconds; from its runtime cache it takes them
ready made.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from trtship.family.spares import Owner
from trtship.files import cache_root
from trtship.gpu import Gpu
from trtship.kept import Kept

LIMIT = 4 << 30
"""Bytes that the folder may take: those least lately used make way."""


class KernelStore(Kept):
    """One plan's kernels on one GPU: a file under `cache_root()/kernels`, named after all that they depend on.
    `owner` is that name and the GPU's number, for those that stay in this process."""

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
        device: int = 0,
    ) -> None:
        """`device` is the GPU's number, `runtime` is the TensorRT that compiles, `variables` are the environment's that
        it heeds; `digest` is the plan's SHA-256, where it is known."""
        inputs = {
            "plan": digest or hashlib.sha256(plan).hexdigest(),
            "runtime": runtime,
            "variables": dict(variables),
            "gpu": [gpu.name, gpu.compute_capability, gpu.driver],
        }
        name = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
        self.owner: Owner = name, device
        super().__init__((root or cache_root()) / "kernels" / name, "kernels", limit=limit)
