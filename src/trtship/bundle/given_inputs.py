"""Inputs that a user gives to a bundle that is made already: what the bundle makes of them, against its fp32 graph.

The original is not in the bundle. Its fp32 graph is, and was checked against it; what that graph gives through
onnxruntime stands for the original's answers, and the verdict says so. The bound is derived as a deploy derives it,
from the noise of the precision on these very rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from trtship.bundle.bundle import Bundle
from trtship.bundle.debug_cases import Case
from trtship.bundle.graph_files import graph_session, private_graphs
from trtship.bundle.subjects import EXACT, Subject
from trtship.errors import DependencyError, GraphError, InputError, MachineError
from trtship.graphs import load_graph, rounding_bound
from trtship.graphs.rounding import QUANTILE
from trtship.input_files import Samples, source_of
from trtship.input_values import TriedInput
from trtship.measure import Measure
from trtship.progress import Progress
from trtship.session.base import Session
from trtship.spec import Precision, TensorSpec, batch_letter, batch_range
from trtship.verify import Bound, Reference, Verdict, compare, not_run
from trtship.verify.bounds import derive_bounds
from trtship.verify.gates import Gates
from trtship.verify.verdict import REL_L2_GIVEN

MAX_SIZES, MAX_ROWS = 8, 16
"""Sets of sizes, and rows at each, that are run: more are spread over what was given."""
NOTE = "the answers are those of the bundle's fp32 graph, through onnxruntime, and not PyTorch's"


def rows_given(samples: Samples, inputs: Sequence[TensorSpec], *, most: int = MAX_ROWS) -> Iterator[dict[str, Any]]:
    """Yield at most `most` rows of each of at most `MAX_SIZES` groups."""
    letter, groups = batch_letter(inputs), samples.groups
    for place in np.unique(np.linspace(0, len(groups) - 1, min(len(groups), MAX_SIZES)).round().astype(int)):
        group = groups[place]
        batched = [s.name for s in inputs if letter is not None and s.shape and s.shape[0] == letter]
        if letter is None:  # a model of one fixed batch: the first whole batch
            size = inputs[0].shape[0] if inputs[0].shape else 1
            yield {name: array[:size] if array.ndim else array for name, array in group.items()}
            continue
        count = len(group[batched[0]])
        some = np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))
        yield {n: np.ascontiguousarray(array[some]) if n in batched else array for n, array in group.items()}


def sizes_of(feeds: Mapping[str, Any], inputs: Sequence[TensorSpec]) -> dict[str, int]:
    """Return the sizes of the letters but the batch's."""
    letter = batch_letter(inputs)
    return {
        dimension: int(size)
        for spec in inputs
        for dimension, size in zip(spec.shape, feeds[spec.name].shape, strict=True)
        if isinstance(dimension, str) and dimension != letter
    }


def reference_of(session: Session, feeds: Mapping[str, Any], inputs: Sequence[TensorSpec]) -> Reference:
    """Return rows with what `session` makes of them. Raises InputError where that is not finite."""
    outputs = dict(session.infer(feeds))
    if not all(np.isfinite(np.asarray(array, np.float64)).all() for array in outputs.values()):
        raise InputError(
            "the model itself gives NaN or Inf on the inputs given",
            why=f"{session.runtime} does",
            do="check the inputs, and leave such rows out",
        )
    return Reference(batch_letter(inputs), sizes_of(feeds, inputs), dict(feeds), outputs)


def given_cases(bundle: Bundle, inputs: Any) -> tuple[Case, ...]:
    """Return what a user gave to `trtship debug`, in batches that the bundle takes. Raises InputError, ImageError."""
    m, source = bundle.manifest, source_of(inputs)
    if source is None:
        return ()
    samples = source.read(m.inputs, ranges=m.ranges, preprocess=m.preprocess)
    limits, letter, found = batch_range(m.inputs, m.ranges), batch_letter(m.inputs), []
    for feeds in rows_given(samples, m.inputs):
        rows = Reference(letter, sizes_of(feeds, m.inputs), feeds, {})
        size = min(max(rows.rows, limits.min), limits.max)
        for first in range(0, rows.rows, size) if letter is not None else (0,):
            where = ", ".join(f"{name}={n}" for name, n in rows.sizes.items())
            name = f"the given rows from {first} on of {samples.origin}" + (f", {where}" if where else "")
            found.append(Case(name, rows.at(size, first=first)[0]))
    return tuple(found)


def given_verdicts(
    bundle: Bundle, samples: Samples, subjects: Sequence[Subject], *, gates: Gates, progress: Progress
) -> list[Verdict]:
    """Return a verdict on the given rows for each subject but the fp32 graph, which gives the answers."""
    m = bundle.manifest
    with graph_session(bundle, m.graph) as session:
        references = [reference_of(session, feeds, m.inputs) for feeds in rows_given(samples, m.inputs)]
    tried = tuple(TriedInput(name=spec.name, values=samples.origin, invented=False) for spec in m.inputs)
    bounds = [_bounds(bundle, reference) for reference in references]
    found = []
    for subject in [s for s in subjects if s.name != EXACT]:
        with progress.stage(f"verify {subject.name}", f"on {samples.origin}"):
            verdict = _verdict(bundle, subject, references, bounds, gates)
        found.append(msgspec.structs.replace(verdict, inputs=tried) if verdict.state != "not run" else verdict)
    return found


def _verdict(
    bundle: Bundle,
    subject: Subject,
    references: Sequence[Reference],
    bounds: Sequence[Mapping[str, Bound]],
    gates: Gates,
) -> Verdict:
    m = bundle.manifest
    limits = batch_range(m.inputs, m.ranges)
    batches = tuple(sorted({limits.min, limits.opt, limits.max}))
    try:
        session = subject.open()
    except (MachineError, GraphError) as error:
        return not_run(subject.name, REL_L2_GIVEN, f"{error.what}: {error.why}" if error.why else error.what)
    verdicts = []
    with session:
        for reference, derived in zip(references, bounds, strict=True):
            bound = gates.bound(derived[subject.name], loosen=True)
            one = compare(session, reference, subject=subject.name, batches=batches, bound=bound, gate=REL_L2_GIVEN)
            verdicts.append(one)
    measures: list[Measure] = [measure for verdict in verdicts for measure in verdict.measures]
    worst = max(verdicts, key=lambda v: (v.state == "failed", _share(v)))
    sizes = list({tuple(sorted(one.sizes.items())): one.sizes for one in measures}.values())
    return msgspec.structs.replace(worst, measures=tuple(measures), sizes=tuple(sizes), note=NOTE)


def _share(verdict: Verdict) -> float:
    bound = verdict.bound.value if verdict.bound is not None else 0.0
    return (verdict.worst or 0.0) / bound if bound else 0.0


def _bounds(bundle: Bundle, reference: Reference) -> Mapping[str, Bound]:
    """The bounds of these rows. Those of the bundle's own reference stand for them where the bundle is quantized, since
    its losses are not recorded, and where this machine cannot measure noise."""
    m = bundle.manifest
    if m.precision.quantized:
        return m.bounds
    try:
        with private_graphs(bundle) as path_of:
            graph, typed = path_of(m.graph), path_of(m.precision_graph)
            counted = rounding_bound(load_graph(graph), Precision.FP32)
            path = rounding_bound(load_graph(typed), m.precision).bound / QUANTILE
            return derive_bounds(typed, m.precision, reference, counted=counted, path=path, graph=graph)
    except DependencyError:  # a machine that only runs bundles
        return m.bounds
