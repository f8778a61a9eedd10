"""How far rounding alone may move a network's outputs: the bound that a correct plan meets, and a wrong one does not.

The rule of thumb of probabilistic error analysis (N. J. Higham and T. Mary, "A New Approach to Probabilistic Rounding
Error Analysis", SIAM J. Sci. Comput. 41(5), 2019): n roundings with unit roundoff u move a result by about
sqrt(n) u, relatively, and not by n u, because rounding errors are independent with mean zero. Here that reads

    bound = lambda * sqrt(sum of u_i^2)        over the roundings i on the graph's longest path,

where lambda makes it a confidence limit. A rounding error is uniform over half a gap, and significands m in [1, 2)
are distributed as 1/m (Benford; Knuth, TAOCP vol. 2, 4.2.4), so its relative size has the variance
u^2/3 * E[1/m^2] = u^2/3 * 3/(8 ln 2), a deviation of 0.425 u. The sum of many is normal (central limit theorem), and
exceeds 4.89 deviations once in a million: lambda = 4.89 * 0.425 = 2.08.

It takes the network's own gain for 1: normalisation and residual sums keep it near that.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from trtship.errors import GraphError
from trtship.graphs.roundings import Rounding, roundings_of
from trtship.spec import Precision, Record

if TYPE_CHECKING:
    import onnx_ir

QUANTILE = 4.891638
"""Of the standard normal distribution, two-sided, for a probability of 1e-6."""
DEVIATION = math.sqrt(1 / (8 * math.log(2)))
"""Of one rounding's relative error, in units of u."""
LAMBDA = QUANTILE * DEVIATION
CEILING = 0.1
"""No derived bound is above it: a cosine of 0.995. A network that rounding moves further is not to be run in that
precision, right or wrong; who thinks otherwise can say so (--max-rel-l2)."""


class RoundingBound(Record, frozen=True):
    """`bound` on the relative L2 error of each output, and how it came about.

    `roundings` counts those on the longest path at the precision's own `unit_roundoff`, `accumulations` those in
    fp32 (sums inside a product or a reduction, and the operators that stay in fp32).
    """

    bound: float
    unit_roundoff: float
    roundings: int
    accumulations: int
    lambda_: float
    derivation: str


def rounding_bound(model: onnx_ir.Model, precision: Precision) -> RoundingBound:
    """The bound for `model` as it runs: for fp16 and bf16 the graph in that type, for tf32 the fp32 graph.

    Raises GraphError when the graph holds no tensor of the precision's type.
    """
    from onnx_ir.passes.common import ShapeInferencePass

    typed = ShapeInferencePass()(model.clone()).model
    kinds = {value.dtype.name for node in typed.graph for value in node.outputs if value.dtype is not None}
    wanted = {"float16": "FLOAT16", "bfloat16": "BFLOAT16"}.get(precision.graph_dtype, "FLOAT")
    if wanted not in kinds:
        raise GraphError(
            f"the graph is not in {precision.value}",
            why=f"none of its tensors is {precision.graph_dtype}",
            do="use --precision fp32: there is nothing in this graph that could be in a lower one",
        )
    longest = _largest(roundings_up_to(typed, precision).values())
    bound = LAMBDA * math.sqrt(longest.variance)
    return RoundingBound(
        bound=bound,
        unit_roundoff=precision.unit_roundoff,
        roundings=longest.low if precision is not Precision.FP32 else longest.low + longest.full,
        accumulations=longest.full if precision is not Precision.FP32 else 0,
        lambda_=LAMBDA,
        derivation=_derivation(longest, precision, bound),
    )


def roundings_up_to(
    model: onnx_ir.Model, precision: Precision, *, more: Mapping[str, float] | None = None
) -> dict[str, Rounding]:
    """For each tensor that a node makes, by name: the largest sum of squared roundoffs over all paths to it.

    Constants and integers start at none. `model` has its types and, where known, its shapes. `more` is variance that
    the tensors of these names add: of quantization, say.
    """
    so_far: dict[str, Rounding] = {}
    for node in model.graph:
        before = _largest(so_far.get(value.name or "", Rounding()) for value in node.inputs if value is not None)
        after = before + roundings_of(node, precision)
        for output in node.outputs:
            if more and output.name in more:
                after += Rounding(variance=more[output.name or ""])
            so_far[output.name or ""] = after
    return so_far


def _largest(candidates: Iterable[Rounding]) -> Rounding:
    return max(candidates, key=lambda rounding: rounding.variance, default=Rounding())


def _derivation(longest: Rounding, precision: Precision, bound: float) -> str:
    own = f"{longest.low} roundings at u = {precision.unit_roundoff:.3g} ({precision.value})"
    full = f"{longest.full} at 2^-24 (fp32)"
    tf32 = f", {longest.tf32} at 2^-11 (TF32)" * bool(longest.tf32)
    parts = full if precision is Precision.FP32 else f"{own}{tf32} and {full}"
    return (
        f"longest path: {parts}; bound = lambda * sqrt(sum of u^2) = {LAMBDA:.3g} * {bound / LAMBDA:.3g}; lambda = "
        f"{QUANTILE:.3g} (normal quantile for 1e-6) * {DEVIATION:.3g} (deviation of one rounding, Benford "
        "significands); after Higham and Mary 2019"
    )


def precision_of(model: onnx_ir.Model) -> Precision:
    """By the lowest type among the graph's inputs, outputs and constants."""
    values = [*model.graph.initializers.values(), *model.graph.inputs, *model.graph.outputs]
    kinds = {value.dtype.name for value in values if value.dtype is not None}
    return Precision.BF16 if "BFLOAT16" in kinds else Precision.FP16 if "FLOAT16" in kinds else Precision.FP32
