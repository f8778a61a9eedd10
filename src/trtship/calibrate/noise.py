"""How far quantization may move a network's outputs, from how far it moves each tensor.

A number that is rounded to steps of s is off by s / sqrt(12), one deviation (a uniform distribution). E4M3 has 4 bits
of significand, so that its roundings have the deviation of any float's, relative to the number itself
(`trtship.graphs.rounding`), and steps of 2^-9 below its normal range. Weights are known, and so is their error. Each of
these is one more error on the paths through the graph, and they add up as roundings do: independent, with mean zero,
the network's gain taken for 1.

Quantization makes more of differences than rounding does: two runs of one quantized graph that differ by little have
numbers on either side of a step's edge, and are soon as far apart as each is from the original. So a plan cannot be
held closer to the quantized graph in another runtime than to the original: the bound is the same.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from trtship.calibrate.records import Calibration
from trtship.graphs.rounding import DEVIATION, LAMBDA, QUANTILE, roundings_up_to
from trtship.passes.quantize import QuantizeReport
from trtship.spec import Precision, Record

if TYPE_CHECKING:
    import onnx_ir

E4M3_ROUNDOFF, E4M3_STEP = 2.0**-4, 2.0**-9
CEILING = 0.5
"""An output of zeros is off by 1: a bound above this would tell nothing."""


class QuantizationBound(Record, frozen=True):
    """`bound` on the relative L2 error of each output, from the `deviation` that the longest path has."""

    bound: float
    deviation: float
    derivation: str


def quantization_noise(report: QuantizeReport, calibration: Calibration | None) -> dict[str, float]:
    """Relative errors, one deviation, by the name of the tensor that has them: what DequantizeLinear makes of each
    tensor of activations, and the products' results, for their weights. `calibration` may be None where no activations
    are quantized."""
    found = {product.result: product.weight_error for product in report.products}
    ranges = calibration.tensors if calibration is not None else {}
    for tensor in report.tensors:
        found[tensor.result] = _error(report.precision, tensor.scale, ranges[tensor.name].rms)
    return found


def _error(precision: Precision, scale: float, rms: float) -> float:
    if rms == 0:
        return 0.0
    step = scale / math.sqrt(12) / rms
    return step if precision is Precision.INT8 else math.hypot(DEVIATION * E4M3_ROUNDOFF, E4M3_STEP * step)


def quantization_bound(model: onnx_ir.Model, precision: Precision, noise: dict[str, float]) -> QuantizationBound:
    """For `model`, quantized and strongly typed, whose tensors have the errors `noise`."""
    from onnx_ir.passes.common import ShapeInferencePass

    typed = ShapeInferencePass()(model.clone()).model
    paths = roundings_up_to(typed, precision, more={name: (e / DEVIATION) ** 2 for name, e in noise.items()})
    variance = max((paths[o.name or ""].variance for o in typed.graph.outputs if o.name in paths), default=0.0)
    deviation, bound = DEVIATION * math.sqrt(variance), LAMBDA * math.sqrt(variance)
    capped = f", held to at most {CEILING}" if bound > CEILING else ""
    return QuantizationBound(
        bound=min(bound, CEILING),
        deviation=deviation,
        derivation=f"errors of {len(noise)} tensors in {precision.value}, and of roundings in {precision.graph_dtype}, "
        f"on the longest path: {deviation:.3g} (one deviation, added in squares); times {QUANTILE:.3g} (the normal "
        f"quantile for 1e-6) = {bound:.3g}{capped}",
    )
