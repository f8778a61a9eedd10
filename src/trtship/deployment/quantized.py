"""What fp8 and int8 need of the options and of the machine, told before any work."""

from __future__ import annotations

from collections.abc import Sequence

from trtship.errors import DeviceError, SpecError
from trtship.gpu import list_gpus
from trtship.passes.quantize_places import Scope
from trtship.spec import Precision

FP8_CAPABILITY = (8, 9)
"""The first with products in fp8 (NVIDIA, "CUDA C++ Programming Guide", compute capabilities): Ada Lovelace."""


def check_quantized(precision: Precision, *, scope: Scope, calib: str | None, targets: Sequence[str]) -> None:
    """Raises SpecError without inputs to calibrate on, or for targets that lack fp8; DeviceError for such a GPU."""
    if calib is None and scope != "weights":
        raise SpecError(
            f"--precision {precision.value} needs inputs to calibrate on",
            why="its scales come from what the model makes of them",
            do="add --calib DIR, with some hundred pictures like those that it will see, or --inputs FILE",
        )
    if precision is not Precision.FP8:
        return
    for target in targets:
        if _capability(target) < FP8_CAPABILITY:
            raise SpecError(
                f"--target {target} has no fp8",
                why="products in fp8 need compute capability 8.9 or later",
                do="use --precision int8 or fp16 for it",
            )
    gpus = [] if targets else list_gpus()
    if gpus and _capability(gpus[0].compute_capability) < FP8_CAPABILITY:
        raise DeviceError(
            f"{gpus[0].name} has no fp8",
            why=f"its compute capability is {gpus[0].compute_capability}, and fp8 needs 8.9 or later",
            do="use --precision int8 or fp16, or --target for another GPU",
        )


def _capability(text: str) -> tuple[int, int]:
    """`"8.9"` as (8, 9); what says no number (`current`) is taken for the newest."""
    major, _, minor = text.partition(".")
    return (int(major), int(minor or 0)) if major.isdecimal() and minor.isdecimal() else (99, 0)
