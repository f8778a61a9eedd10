"""The order of safety, and the order in which candidates are tried."""

from __future__ import annotations

from trtship.deployment.way import Way
from trtship.spec import Precision

SAFEST_FIRST = (
    Precision.FP32,
    Precision.TF32,
    Precision.FP16,
    Precision.BF16,
    Precision.FP8,
    Precision.INT8,
)
"""By what can go wrong on inputs that nobody tried: fp32 rounds least; tf32 rounds products alone, to fp16's digits,
and keeps fp32's range; fp16 rounds everything, and can overflow; bf16 cannot, and rounds eight times as coarsely; fp8
and int8 depend on ranges that were calibrated, int8 more so, since its steps are all of one size."""
IN_WORDS = ", ".join(p.value for p in SAFEST_FIRST) + "; a mixture stands before the precision that it is of"


def risk(way: Way) -> tuple[int, int]:
    """Sorts ways, the safest first: a mixture is safer than the plain precision, and the more so the more it keeps."""
    return SAFEST_FIRST.index(way.precision), -len(way.kept)


TRIED = (Precision.FP32, Precision.FP16, Precision.TF32, Precision.BF16, Precision.INT8, Precision.FP8)
"""The first two are there early: where time runs out, something safe and something fast is known."""
