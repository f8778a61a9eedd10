"""ONNX -> ONNX, one pass a file."""

from trtship.passes.base import Pass, PassResult
from trtship.passes.compare import Difference, differences
from trtship.passes.emulate import emulate_low
from trtship.passes.precision import PrecisionReport, ToPrecision, to_precision
from trtship.passes.quantize import QuantizeReport, to_quantized
from trtship.passes.simplification import SimplifyReport, simplify

__all__ = [
    "Difference",
    "Pass",
    "PassResult",
    "PrecisionReport",
    "QuantizeReport",
    "SimplifyReport",
    "ToPrecision",
    "differences",
    "emulate_low",
    "simplify",
    "to_precision",
    "to_quantized",
]
