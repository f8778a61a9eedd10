"""Whether this machine has the memory for batches as large as a manifest says, asked before they are made."""

from __future__ import annotations

import math
import os
import resource
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from trtship.bundle.bundle import Bundle
from trtship.errors import MachineError
from trtship.spec import TensorSpec, batch_letter, batch_range

COPIES = 4
"""Of inputs and outputs while a batch is compared: they, what is expected, and both of a row in float64."""
_BYTES = {"float64": 8, "int64": 8, "float32": 4, "int32": 4, "float16": 2, "bfloat16": 2}
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def require_room(bundle: Bundle, *, batch: int | None = None) -> None:
    """Check that the inputs and outputs of a batch, and copies of them, fit in this machine's memory.

    Args:
        bundle: whose inputs and outputs; sizes other than the batch are at their largest.
        batch: rows; None for the largest that the bundle takes.

    Raises:
        MachineError: they do not fit.
    """
    m = bundle.manifest
    sizes = {letter: r.max for letter, r in m.ranges.items()}
    if batch is not None and (letter := batch_letter(m.inputs)) is not None:
        sizes[letter] = batch
    needed, memory = COPIES * sum(_size(spec, sizes) for spec in (*m.inputs, *m.outputs)), memory_here()
    if needed > memory:
        rows = batch_range(m.inputs, m.ranges).max if batch is None else batch
        raise MachineError(
            f"this machine has too little memory for {bundle.folder}",
            why=f"a batch of {rows} rows takes about {needed / 2**30:.1f} GiB with its outputs and copies, and there "
            f"are {memory / 2**30:.1f} GiB",
            do="use a machine with more memory, or deploy the model with smaller sizes (--batch, --size)",
        )


def memory_here() -> int:
    """Return the bytes of memory that this process may have: the machine's, or a limit on the process or container."""
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        found.append(limit)
    with suppress(OSError, ValueError):  # "max", or a system without cgroups of version 2
        found.append(int(CGROUP_LIMIT.read_text()))
    return min(found)


def _size(spec: TensorSpec, sizes: Mapping[str, int]) -> int:
    """Bytes of a tensor; a letter that the model computes counts as 1."""
    return math.prod(sizes.get(d, 1) if isinstance(d, str) else d for d in spec.shape) * _BYTES.get(spec.dtype, 1)
