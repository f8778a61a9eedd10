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

*Where numbers cancel* (the mean of a flat picture is subtracted from it) the errors of fp32 arithmetic count in every
precision. On the edge rows they are measured as well, with fp32's errors alone, and added. A row on which an output is
next to nothing is held to an absolute bound (`trtship.graphs.small_rows`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np

from trtship.graphs.rounding import CEILING as CEILING
from trtship.graphs.rounding import LAMBDA, QUANTILE, RoundingBound, rounding_bound
from trtship.graphs.small_rows import floors, row_sizes, worst_of
from trtship.graphs.storage import load_graph
from trtship.measure import measure
from trtship.passes.known import Known
from trtship.spec import Precision
from trtship.verify.noise import Noise, measured_noise
from trtship.verify.reference import Reference
from trtship.verify.verdict import Bound, size_key

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
    graph: Path | None = None,
) -> dict[str, Bound]:
    """The bounds on relative L2 of `graph fp32`, of `graph <precision>` and of `plan`.

    `counted` is the fp32 graph's bound, `path` the error of the longest path, one deviation, of the strongly typed
    graph at `typed`, and `losses` what quantization takes from its tensors (`measured_noise`). `graph` is the fp32
    graph, whose weights cancel where those of a lower precision do not; None for `typed`. At each of the other sizes
    the bounds are what the noise of the rows there gives. Raises GraphError.
    """
    is_full = precision is Precision.FP32
    noise = measured_noise(typed, precision, reference, losses=losses, edges=not is_full)
    full_noise = noise
    if graph is not None or not precision.quantized:
        every = (noise, *noise.others)
        has_small = any(one.small for one in every) or any(_has_small_rows(case) for case in reference.cases)
        full_noise = measured_noise(graph or typed, Precision.FP32, reference, rows=has_small, untied=True)
        noise = _together(noise, full_noise)
    main, *others = reference.cases
    full_graph = graph if graph is not None or precision.graph_dtype != "float32" else typed
    counts = _counted_at(full_graph, reference, counted)
    each = list(zip(others, noise.others, full_noise.others, counts[1:], strict=True))
    same = [low for case, low, _, _ in each if case.sizes == main.sizes]
    rows = (*noise.rows, *(deviation for one in same for deviation in one.rows))
    usual = msgspec.structs.replace(noise, rows=rows, small=worst_of([noise.small, *(one.small for one in same)]))
    found = _bounds(usual, full_noise, precision, main, counts[0], path)
    at: dict[str, dict[str, Bound]] = {subject: {} for subject in found}
    for case, low, full, count in each:
        if case.sizes == main.sizes:
            continue
        source = f"as at the usual sizes, of the noise measured at these: {low.worst:.3g}"
        for subject, bound in _bounds(low, full, precision, case, count, path).items():
            at[subject][size_key(case.sizes)] = msgspec.structs.replace(bound, source=source)
    return {subject: msgspec.structs.replace(bound, sizes=at[subject]) for subject, bound in found.items()}


def _counted_at(graph: Path | None, reference: Reference, counted: RoundingBound) -> list[RoundingBound]:
    """Return the count of roundings at each set of sizes of `reference.cases`, and at least `counted`.

    `counted` takes `UNKNOWN_SIZE` terms for a sum over dynamic sizes. A sum over all pixels of a large picture has
    more. Without `graph`, the fp32 one, `counted` stands for all.
    """
    cases = [case.sizes for case in reference.cases]
    if graph is None or not any(cases):
        return [counted] * len(cases)
    largest = {letter: max(sizes[letter] for sizes in cases) for letter in cases[0]}
    if _counted(graph, largest, reference.batch).bound <= counted.bound:
        return [counted] * len(cases)
    found = [_counted(graph, sizes, reference.batch) for sizes in cases]
    return [one if one.bound > counted.bound else counted for one in found]


def _counted(graph: Path, sizes: Mapping[str, int], batch: str | None) -> RoundingBound:
    """Return the count of fp32 roundings for one row at these sizes."""
    import onnx_ir as ir

    model = load_graph(graph)
    known = Known(model, {**sizes, batch: 1} if batch is not None else sizes)
    for value in [*model.graph.inputs, *(output for node in model.graph for output in node.outputs)]:
        shape = known.shape(value)
        if shape is not None:
            value.shape = ir.Shape(shape)
    return rounding_bound(model, Precision.FP32)


def _bounds(
    noise: Noise,
    full_noise: Noise,
    precision: Precision,
    reference: Reference,
    counted: RoundingBound,
    path: float,
) -> dict[str, Bound]:
    """The bounds at one set of sizes, of the noise measured there: that of the precision, and that of fp32."""
    seen = _seen(reference, floors(full_noise.small, CEILING))
    gain = max(noise.worst / path if path else 0.0, seen * QUANTILE / counted.bound if counted.bound else 0.0)
    full = min(counted.bound * max(1.0, gain), CEILING / 2)
    told = f"; eager fp32 is {seen:.3g} from fp64" if seen else ""
    edges = {
        name: max(
            counted.bound * max(1.0, gain, deviation / path if path else 0.0),
            QUANTILE * full_noise.edges.get(name, 0.0),
        )
        for name, deviation in noise.edges.items()
    }
    fp32 = Bound(
        value=2 * full,
        source=f"{counted.derivation}; times the network's gain where it is above 1 (measured: {gain:.3g}{told}); "
        "twice, since the fp32 original rounds as well",
        own=full,
        rows=_over({name: 2 * value for name, value in edges.items()}, 2 * full, CEILING),
    )
    found = {"graph fp32": _with_floors(fp32, full_noise)}
    if precision is not Precision.FP32:
        found[f"graph {precision.value}"] = _with_floors(_low(precision, noise, full, edges), noise)
    return {**found, "plan": found[f"graph {precision.value}"]}


def _has_small_rows(reference: Reference) -> bool:
    """Whether an output is much smaller on one of the rows than on all."""
    usual = row_sizes(reference.outputs, whole=True)
    rows = row_sizes(reference.outputs, whole=not reference.rowwise)
    return any(size < CEILING * usual[0][name] for row in rows for name, size in row.items())


def _together(low: Noise, full: Noise) -> Noise:
    """The noise of a low precision with that of the fp32 arithmetic in it, which is too small to be measured together
    with it, and which counts where numbers cancel: both are independent."""

    def joined(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, float]:
        return {name: math.hypot(first.get(name, 0.0), second.get(name, 0.0)) for name in {**first, **second}}

    small = {
        name: joined(low.small_edges.get(name, {}), full.small_edges.get(name, {}))
        for name in {**low.small_edges, **full.small_edges}
    }
    edges = joined(low.edges, full.edges)
    others = tuple(_together(one, other) for one, other in zip(low.others, full.others, strict=True))
    return Noise(low.rows, edges, joined(low.small, full.small), small, others)


def _with_floors(bound: Bound, noise: Noise) -> Bound:
    """`bound`, where outputs that are next to nothing are held to their noise (`trtship.graphs.small_rows`). Of a row
    with a bound of its own, the subject's part is the same share."""
    assert bound.own is not None
    own = bound.own
    rows = {
        name: floors(small, own * bound.rows.get(name, bound.value) / bound.value)
        for name, small in noise.small_edges.items()
    }
    return msgspec.structs.replace(bound, floors=floors(noise.small, own), row_floors=rows)


def _low(precision: Precision, noise: Noise, full: float, edges: Mapping[str, float]) -> Bound:
    """At least one rounding of the result itself, however little was measured. `edges` is the original's part on each
    edge row."""
    least, ceiling = LAMBDA * precision.unit_roundoff, QUANTIZED_CEILING if precision.quantized else CEILING
    own = max(QUANTILE * noise.worst, least)
    capped = f", held to at most {ceiling}: rounding alone may move it further" if own + full > ceiling else ""
    return Bound(
        value=min(own + full, ceiling),
        source=f"noise of {precision.value} measured on the graph: {noise.worst:.3g}, the worst of {len(noise.rows)} "
        f"reference rows; times {QUANTILE:.3g} (normal quantile for 1e-6, which no Gaussian vector exceeds more often: "
        f"Szekely and Bakirov 2003) = {own:.3g}; plus {full:.3g} for the fp32 original{capped}",
        own=min(own, ceiling),
        rows=_over(
            {name: max(QUANTILE * d, least) + edges.get(name, full) for name, d in noise.edges.items()},
            own + full,
            ceiling,
        ),
    )


def _over(found: Mapping[str, float], usual: float, ceiling: float) -> dict[str, float]:
    """Of the edge rows whose noise is above the reference's: their own bounds."""
    return {name: min(value, ceiling) for name, value in found.items() if value > usual}


def _seen(reference: Reference, least: Mapping[str, float]) -> float:
    """How far the original in fp32 is from itself in fp64: the worst row's relative L2; 0 where that is not known.
    Rows count as having at least these sizes."""
    if reference.exact is None:
        return 0.0
    found = [
        measure(exact, reference.outputs[name], output=name, sizes={}, floor=least.get(name, 0.0)).rel_l2
        for name, exact in reference.exact.items()
        if np.asarray(exact).dtype.kind == "f"
    ]
    return max((v for v in found if v is not None), default=0.0)
