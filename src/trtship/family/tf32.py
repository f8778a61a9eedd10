"""fp32 without TF32, in both families.

Full TensorRT honours the builder's TF32 flag. TensorRT for RTX 1.6.1 takes the flag and multiplies in TF32 all the same
(measured on an H100: relative error 2.9e-4 of one matrix product, with and without the flag). What it does honour is
the environment variable NVIDIA_TF32_OVERRIDE=0, in two ways:

* It compares the variable as it is when it builds a plan with what it is when it creates an execution context, and
  refuses to create one where they differ. `environment` sets it for these two moments.
* What it multiplies in is settled by the variable earlier in the process: setting it for the two moments alone, in a
  process that had run other plans, left the products in TF32 (measured). `settle` sets it for good, and must come
  before TensorRT for RTX is imported; later it may be of no use, which only a measurement can tell.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

VARIABLE = "NVIDIA_TF32_OVERRIDE"
_lock = threading.RLock()


def environment_for(family: str, *, tf32: bool) -> dict[str, str]:
    """What must be in the environment while a plan is built, and while a context is created for it, anywhere."""
    return {VARIABLE: "0"} if family == "tensorrt_rtx" and not tf32 else {}


def settle(family: str, *, tf32: bool) -> None:
    """Where fp32 is wanted: set the variable for the rest of the process. Call it before the family is imported."""
    os.environ.update(environment_for(family, tf32=tf32))


@contextmanager
def environment(wanted: dict[str, str]) -> Iterator[None]:
    """`VARIABLE` as in `wanted`, absent where it is not there, while the block runs; then as it was."""
    with _lock:
        before = os.environ.pop(VARIABLE, None)
        os.environ.update(wanted)
        try:
            yield
        finally:
            os.environ.pop(VARIABLE, None)
            if before is not None:
                os.environ[VARIABLE] = before
