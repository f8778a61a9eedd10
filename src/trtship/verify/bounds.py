"""The bounds that the subjects of a bundle are held to: from the precision, the graph's depth, and measured noise.

Two errors meet in a comparison with eager PyTorch: the subject's, and the original's own.

*Measured*: `trtship.verify.noise` runs the graph with the errors of its precision and finds the deviation d of each
reference row's relative L2 error. An error is a Gaussian vector (the sum of many small ones) with E ||e||^2 = d^2.
Whatever its covariance, its norm exceeds 4.89 d at most once in a million: of all Gaussian quadratic forms of mean 1,
that of one dimension has the heaviest tail (Szekely and Bakirov, "Extremal probabilities for Gaussian quadratic
forms", Probab. Theory Relat. Fields 126, 2003). d is that of the worst row.

*Counted*: `trtship.graphs.rounding` bounds it by the roundings on the graph's longest path, the network's gain taken
for 1. What d is of that path's own deviation is the gain, measured.

For fp16, bf16 and tf32 the measured bound is used: there the graph's tensors say what is rounded. For fp32 the graph
does not: how its sums are ordered, its functions approximated and its products split is the kernel's own affair, and
all of it is of the size of fp32's roundoff. (TensorRT for RTX 1.6 gave 1.6e-5 for Swin-T on an H100, where onnxruntime
gave 6e-7.) So the counted bound stands, times the gain where that is above 1. The original runs in fp32 as well.

For int8 and fp8 the errors of the quantized tensors are measured with the rest. Two runs of one quantized graph are
soon as far apart as each is from the original: numbers near a step's edge go to either side. Their own error is taken
for all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import numpy as np

from trtship.graphs.rounding import LAMBDA, QUANTILE, RoundingBound
from trtship.measure import measure
from trtship.spec import Precision
from trtship.verify.noise import Noise, measured_noise
from trtship.verify.reference import Reference
from trtship.verify.verdict import Bound, size_key

CEILING = 0.1
"""No derived bound is above it: a cosine of 0.995. A network that rounding moves further is not to be run in that
precision, right or wrong; who thinks otherwise can say so (--max-rel-l2)."""
QUANTIZED_CEILING = 0.5
"""int8 and fp8 lose more, and top-1 stands it better than rounding's figures suggest: evaluation is their gate. An
output of zeros is off by 1, and a bound must stay well below what tells nothing."""


def derive_bounds(
    typed: Path,
    precision: Precision,
    reference: Reference,
    *,
    counted: RoundingBound,
    path: float,
    losses: Mapping[str, float] | None = None,
) -> dict[str, Bound]:
    """The bounds on relative L2 of `graph fp32`, of `graph <precision>` and of `plan`.

    `counted` is the fp32 graph's bound, `path` the error of the longest path, one deviation, of the strongly typed
    graph at `typed`, and `losses` what quantization takes from its tensors (`measured_noise`). At each of the other
    sizes the bounds are what the noise of the rows there gives. Raises GraphError.
    """
    noise = measured_noise(typed, precision, reference, losses=losses)
    main, *others = reference.cases
    same = [n for case, n in zip(others, noise.others, strict=True) if case.sizes == main.sizes]
    usual = msgspec.structs.replace(noise, rows=(*noise.rows, *(d for n in same for d in n.rows)))
    found = _bounds(usual, precision, main, counted, path)
    at: dict[str, dict[str, Bound]] = {subject: {} for subject in found}
    for case, one in zip(others, noise.others, strict=True):
        if case.sizes == main.sizes:
            continue
        source = f"as at the usual sizes, of the noise measured at these: {one.worst:.3g}"
        for subject, bound in _bounds(one, precision, case, counted, path).items():
            at[subject][size_key(case.sizes)] = msgspec.structs.replace(bound, source=source)
    return {subject: msgspec.structs.replace(bound, sizes=at[subject]) for subject, bound in found.items()}


def _bounds(
    noise: Noise, precision: Precision, reference: Reference, counted: RoundingBound, path: float
) -> dict[str, Bound]:
    """The bounds at one set of sizes, of the noise measured there."""
    seen = _seen(reference)
    gain = max(noise.worst / path if path else 0.0, seen * QUANTILE / counted.bound if counted.bound else 0.0)
    full = min(counted.bound * max(1.0, gain), CEILING / 2)
    told = f"; eager fp32 is {seen:.3g} from fp64" if seen else ""
    fp32 = Bound(
        value=2 * full,
        source=f"{counted.derivation}; times the network's gain where it is above 1 (measured: {gain:.3g}{told}); "
        "twice, since the fp32 original rounds as well",
        own=full,
        rows=_rows(noise, lambda d: 2 * counted.bound * max(1.0, gain, d / path if path else 0.0), 2 * full, CEILING),
    )
    found = {"graph fp32": fp32}
    if precision is not Precision.FP32:
        found[f"graph {precision.value}"] = _low(precision, noise, full)
    return {**found, "plan": found[f"graph {precision.value}"]}


def _low(precision: Precision, noise: Noise, full: float) -> Bound:
    """At least one rounding of the result itself, however little was measured."""
    least, ceiling = LAMBDA * precision.unit_roundoff, QUANTIZED_CEILING if precision.quantized else CEILING
    own = max(QUANTILE * noise.worst, least)
    capped = f", held to at most {ceiling}: rounding alone may move it further" if own + full > ceiling else ""
    return Bound(
        value=min(own + full, ceiling),
        source=f"noise of {precision.value} measured on the graph: {noise.worst:.3g}, the worst of {len(noise.rows)} "
        f"reference rows; times {QUANTILE:.3g} (normal quantile for 1e-6, which no Gaussian vector exceeds more often: "
        f"Szekely and Bakirov 2003) = {own:.3g}; plus {full:.3g} for the fp32 original{capped}",
        own=min(own, ceiling),
        rows=_rows(noise, lambda d: max(QUANTILE * d, least) + full, own + full, ceiling),
    )


def _rows(noise: Noise, bound_of: Callable[[float], float], usual: float, ceiling: float) -> dict[str, float]:
    """Of the edge rows whose noise is above the reference's: their own bounds."""
    found = {name: bound_of(deviation) for name, deviation in noise.edges.items()}
    return {name: min(value, ceiling) for name, value in found.items() if value > usual}


def _seen(reference: Reference) -> float:
    """How far the original in fp32 is from itself in fp64: the worst row's relative L2; 0 where that is not known."""
    if reference.exact is None:
        return 0.0
    found = [
        measure(exact, reference.outputs[name], output=name, sizes={}).rel_l2
        for name, exact in reference.exact.items()
        if np.asarray(exact).dtype.kind == "f"
    ]
    return max((v for v in found if v is not None), default=0.0)
