"""How long full TensorRT's kernels take, kept in the user's cache for the next build on the same GPU.

Full TensorRT times every kernel that a layer could use, which is most of a build; from its timing cache it takes what
it has timed before. (TensorRT for RTX times nothing when it builds.)
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from trtship.family import Family
from trtship.files import cache_root
from trtship.gpu import Gpu
from trtship.kept import Kept

LIMIT = 1 << 30
"""Bytes that the folder may take: those least lately used make way."""


class TimingStore(Kept):
    """The timings of one TensorRT on one GPU, of whatever layers it met: a file under `cache_root()/timings`. Where two
    builds end at once, those of the later one stay."""

    def __init__(self, family: Family, gpu: Gpu, *, root: Path | None = None, limit: int = LIMIT) -> None:
        inputs = {"family": str(family), "gpu": [gpu.name, gpu.compute_capability, gpu.driver]}
        name = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
        super().__init__((root or cache_root()) / "timings" / name, "timings", limit=limit)
