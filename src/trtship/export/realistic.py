"""Check an exported graph on realistic inputs: values that fit the graph, and the user's own rows.

The export itself is checked before a graph exists that could tell what its inputs hold. What the graph tells is put to
the test here: a model that fails on the values, or gives NaN, gets narrower ones, and the record says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np

from trtship.errors import ExportMismatchError, InputError, TrtshipError
from trtship.export.check import sizes_around
from trtship.export.onnx import ExportReport
from trtship.graphs.noise import fp32_gain
from trtship.input_ranges import InputRanges, tried_inputs, with_input_ranges
from trtship.input_samples import Samples
from trtship.input_values import InputDomain, default_domain, is_floating, random_inputs
from trtship.measure import Measure, measure
from trtship.preprocess import Preprocess
from trtship.session.base import Session
from trtship.session.onnxruntime import OnnxRuntimeSession
from trtship.session.torch import TorchSession
from trtship.sources import LoadedGraph, LoadedModel
from trtship.spec import ShapeRange, TensorSpec, batch_letter

ROWS = 8
"""Rows of each trial: the edges of the values are among the first of them."""
NARROWER = (99.0, 9.0, 1.0)
"""The upper ends that are tried, one after the other, where whole numbers up to 999 make a model fail."""
SAMPLE_ROWS = 32
"""Rows of the user's at each set of sizes that the export is checked on."""


class DomainsOf(Protocol):
    """Tells what each input of a graph may hold. The passes come after this room, so that it is handed in."""

    def __call__(
        self,
        graph: Path,
        inputs: Sequence[TensorSpec],
        *,
        ranges: Mapping[str, ShapeRange],
        preprocess: Preprocess | None,
    ) -> dict[str, InputDomain]: ...


def checked_on_realistic(
    model: LoadedModel | LoadedGraph,
    graph: Path,
    report: ExportReport,
    *,
    domains_of: DomainsOf,
    given: InputRanges,
    samples: Samples | None,
    ranges: Mapping[str, ShapeRange],
) -> tuple[ExportReport, dict[str, InputDomain]]:
    """Return the report with the checks on realistic inputs, and what each input may hold.

    Args:
        model: What was exported.
        graph: The exported fp32 graph.
        report: How it was made.
        domains_of: Reads the values that fit the graph.
        given: The ranges of values that the user gave.
        samples: The user's rows.
        ranges: The range of each dynamic size.

    Raises:
        ExportMismatchError, InputError: As `check_realistic`.
        SpecError: A range of the user's does not fit the graph.
    """
    preprocess = model.preprocess if isinstance(model, LoadedModel) else None
    domains = with_input_ranges(
        domains_of(graph, model.inputs, ranges=ranges, preprocess=preprocess), model.inputs, given
    )
    letter = batch_letter(model.inputs)
    others = {name: one for name, one in ranges.items() if name != letter}
    found = check_realistic(model, graph, report, domains=domains, samples=samples, ranges=others)
    real = "" if samples is None else samples.origin
    whole = msgspec.structs.replace(
        report,
        checks=(*report.checks, *found.checks),
        inputs=tried_inputs(model.inputs, found.domains, real=real),
    )
    return whole, found.domains


class Realistic(msgspec.Struct, frozen=True):
    """`domains` are what the model takes, `checks` how far the graph is from it on such inputs."""

    domains: dict[str, InputDomain]
    checks: tuple[Measure, ...]


def check_realistic(
    model: LoadedModel | LoadedGraph,
    graph: Path,
    report: ExportReport,
    *,
    domains: Mapping[str, InputDomain],
    samples: Samples | None = None,
    ranges: Mapping[str, ShapeRange],
) -> Realistic:
    """Compare the graph with the model on values of `domains` at the sizes of the export's check, and on `samples`.

    Args:
        model: What was exported.
        graph: The exported fp32 graph.
        report: How it was made; its bound holds here as well.
        domains: What each input may hold.
        samples: The user's rows.
        ranges: The range of each dynamic size but the batch's.

    Returns:
        The domains, narrowed where the model itself fails on them, and the measures.

    Raises:
        ExportMismatchError: The graph is not the model on these inputs.
        InputError: The model itself fails on the user's rows, or on values of a range that the user gave.
    """
    inputs, outputs = model.inputs, report.outputs
    with OnnxRuntimeSession(graph) as session:
        if isinstance(model, LoadedGraph):
            session.inputs, session.outputs = inputs, outputs
            settled = _settled(session, domains, report.traced)
            for _, feeds in _of_samples(samples):
                _answers(session, feeds, samples)
            return Realistic(settled, ())
        original = TorchSession(model.module, inputs=inputs, outputs=outputs)
        settled = _settled(original, domains, report.traced)
        trials = [*_invented(inputs, settled, report, ranges), *_of_samples(samples)]
        checks: list[Measure] = []
        for sizes, feeds in trials:
            wanted = _answers(original, feeds, samples)
            checks += _compared(session, graph, sizes, feeds, wanted, bound=report.bound)
    return Realistic(settled, tuple(checks))


Trial = tuple[dict[str, int], dict[str, Any]]


def _invented(
    inputs: Sequence[TensorSpec],
    domains: Mapping[str, InputDomain],
    report: ExportReport,
    ranges: Mapping[str, ShapeRange],
) -> Iterator[Trial]:
    letter = batch_letter(inputs)
    for index, sizes in enumerate(sizes_around(report.traced, ranges, batch=letter)):
        full = {**sizes, letter: ROWS} if letter and not index else sizes
        yield dict(full), random_inputs(inputs, full, seed=200 + index, domains=domains)


def _of_samples(samples: Samples | None) -> Iterator[Trial]:
    for group in samples.groups if samples is not None else ():
        rows = max(len(a) if a.ndim else 1 for a in group.values())
        if rows <= SAMPLE_ROWS or len({len(a) for a in group.values() if a.ndim}) > 1:
            yield {}, dict(group)
            continue
        chosen = np.unique(np.linspace(0, rows - 1, SAMPLE_ROWS).round().astype(int))
        yield {}, {name: np.ascontiguousarray(array[chosen]) for name, array in group.items()}


def _answers(original: Session, feeds: Mapping[str, Any], samples: Samples | None) -> dict[str, Any]:
    """What the original says of inputs that it must take."""
    where = samples.origin if samples is not None else "the inputs"
    try:
        found = dict(original.infer(feeds))
    except Exception as error:  # the user's own code may raise anything
        why = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        raise InputError(f"the model itself fails on {where}", why=why, do="check the inputs") from error
    if not _finite(found):
        raise InputError(
            f"the model itself gives NaN or Inf on {where}", why="PyTorch does", do="check the inputs and the weights"
        )
    return found


def _compared(
    session: Session,
    graph: Path,
    sizes: Mapping[str, int],
    feeds: Mapping[str, Any],
    wanted: Mapping[str, Any],
    *,
    bound: float,
) -> list[Measure]:
    where = ", ".join(f"{letter}={n}" for letter, n in sizes.items()) or "the sizes of the given inputs"
    try:
        got = session.infer(feeds)
    except TrtshipError as error:
        raise _mismatch(where, f"onnxruntime refused it: {error.why or error.what}") from error
    found = [measure(wanted[name], got[name], output=name, sizes=sizes) for name in wanted]
    largest = max((m.rel_l2 or 0.0 for m in found), default=0.0)
    if all(m.finite for m in found) and largest > bound:
        bound *= max(1.0, fp32_gain(graph, dict(feeds)))
    for one in found:
        if not one.finite:
            raise _mismatch(where, f"{one.output} has NaN or Inf, and PyTorch's is finite")
        if one.rel_l2 is None or one.rel_l2 > bound:
            raise _mismatch(where, f"{one.output} is off by {one.rel_l2:.2g} (relative L2), over {bound:.2g}")
    return found


def _mismatch(where: str, why: str) -> ExportMismatchError:
    return ExportMismatchError(
        f"the exported graph is not the model on realistic inputs: it differs from PyTorch at {where}",
        why=why,
        do="look for a value of the inputs that becomes a constant in the model, or try the other --exporter",
    )


def _settled(
    original: Session, domains: Mapping[str, InputDomain], traced: Mapping[str, int]
) -> dict[str, InputDomain]:
    """The domains, each as wide as the model takes it. Raises InputError for a range that the user gave."""
    inputs = original.inputs
    letter = batch_letter(inputs)
    sizes = {**traced, letter: ROWS} if letter else dict(traced)
    found = {spec.name: domains.get(spec.name) or default_domain(spec) for spec in inputs}
    if not _fault(original, found, sizes):
        return found
    safe = {spec.name: default_domain(spec) for spec in inputs}
    for spec in inputs:
        alone = {**safe, spec.name: found[spec.name]}
        why = _fault(original, alone, sizes)
        if not why:
            continue
        if not found[spec.name].invented:
            raise InputError(
                f"the model itself fails on {spec.name} of {found[spec.name].origin}", why=why, do="narrow the range"
            )
        fits = (
            one for one in _narrower(spec, found[spec.name]) if not _fault(original, {**safe, spec.name: one}, sizes)
        )
        best = next(fits, safe[spec.name])
        found[spec.name] = msgspec.structs.replace(best, origin=f"{best.origin}; of {found[spec.name].origin}: {why}")
    if why := _fault(original, found, sizes):
        guilty = [name for name, domain in found.items() if not domain.invented]
        if guilty:
            raise InputError(
                f"the model itself fails on the ranges given for {', '.join(guilty)}", why=why, do="narrow them"
            )
        return {
            name: msgspec.structs.replace(one, origin=f"{one.origin}; on wider ones {why}")
            for name, one in safe.items()
        }
    return found


def _narrower(spec: TensorSpec, domain: InputDomain) -> Iterator[InputDomain]:
    if is_floating(spec.dtype) or domain.kind != "uniform" or domain.parts:
        return
    for high in NARROWER:
        if domain.low < high < domain.high:
            values = tuple(v for v in domain.values if domain.low <= v <= high)
            yield msgspec.structs.replace(
                domain, high=high, size=None, values=(*values, high), origin=f"{domain.low:g}..{high:g}, invented"
            )


def _fault(original: Session, domains: Mapping[str, InputDomain], sizes: Mapping[str, int]) -> str:
    """Why the model cannot be compared on values of these domains; empty where it can."""
    try:
        found = original.infer(random_inputs(original.inputs, sizes, seed=200, domains=domains))
    except Exception as error:  # the user's own code may raise anything
        why = error.why or error.what if isinstance(error, TrtshipError) else f"{type(error).__name__}: {error}"
        return f"the model fails ({why.strip().splitlines()[0][:200]})"
    return "" if _finite(found) else "the model gives NaN or Inf"


def _finite(outputs: Mapping[str, Any]) -> bool:
    return all(np.isfinite(np.asarray(a, np.float64)).all() for a in outputs.values())
