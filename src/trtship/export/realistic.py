"""Check an exported graph on realistic inputs: values that fit the graph, and the user's own rows.

The export itself is checked before a graph exists that could tell what its inputs hold. What the graph tells is put to
the test here: a model that fails on the values, or gives NaN, gets narrower ones, and the record says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np

from trtship.errors import ExportMismatchError, InputError, TrtshipError
from trtship.export.onnx import ExportReport
from trtship.graphs.noise import fp32_noise
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


Allowed = Callable[[Mapping[str, int]], bool]
"""Whether the model's own rules allow these sizes."""


def _any_size(sizes: Mapping[str, int]) -> bool:
    return True


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
    allowed: Allowed = _any_size,
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
        allowed: The model's own rules on its sizes.

    Raises:
        ExportMismatchError, InputError: As `check_realistic`.
        SpecError: A range of the user's does not fit the graph.
    """
    preprocess = model.preprocess if isinstance(model, LoadedModel) else None
    domains = with_input_ranges(
        domains_of(graph, model.inputs, ranges=ranges, preprocess=preprocess), model.inputs, given
    )
    if samples is not None:
        _check_values(samples, domains)
    found = check_realistic(model, graph, report, domains=domains, samples=samples, allowed=allowed)
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
    allowed: Allowed = _any_size,
) -> Realistic:
    """Compare the graph with the model on values of `domains`, and on `samples`, in batches of the export's size.

    Other sizes are the affair of the export's own check, and of the reference.

    Args:
        model: What was exported.
        graph: The exported fp32 graph.
        report: How it was made; its bound holds here as well.
        domains: What each input may hold.
        samples: The user's rows.
        allowed: The model's own rules on its sizes.

    Returns:
        The domains, narrowed where the model itself fails on them, and the measures.

    Raises:
        ExportMismatchError: The graph is not the model on these inputs.
        InputError: The model itself fails on the user's rows, or refuses their sizes, or fails on values of a range
            that the user gave.
    """
    inputs, outputs, traced = model.inputs, report.outputs, report.traced
    trials = [trial for group in (samples.groups if samples else ()) for trial in _given(inputs, group, traced)]
    for sizes, _ in trials:
        if samples is not None and not allowed(sizes):
            raise InputError(
                f"{samples.origin}: rows of the sizes {_in_words(sizes)} cannot be used",
                why="the model's own rules on its sizes refuse them",
                do="leave these rows out",
            )
    with OnnxRuntimeSession(graph) as session:
        if isinstance(model, LoadedGraph):
            session.inputs, session.outputs = inputs, outputs
            settled = _settled(session, domains, traced)
            for _, feeds in trials:
                _answers(session, feeds, samples)
            return Realistic(settled, ())
        original = TorchSession(model.module, inputs=inputs, outputs=outputs)
        settled = _settled(original, domains, traced)
        checks: list[Measure] = []
        for sizes, feeds in [*_invented(inputs, settled, traced), *trials]:
            wanted = _answers(original, feeds, samples)
            checks += _compared(session, graph, sizes, feeds, wanted, bound=report.bound)
    return Realistic(settled, tuple(checks))


Trial = tuple[dict[str, int], dict[str, Any]]
"""Sizes, the batch's among them, and inputs."""


def _check_values(samples: Samples, domains: Mapping[str, InputDomain]) -> None:
    """Raise InputError for a row that indexes outside of a table."""
    for name, domain in domains.items():
        if not domain.strict or domain.size is not None or domain.parts:
            continue
        for group in samples.groups:
            array = group[name]
            outside = (array < domain.low) | (array > domain.high)
            if outside.any():
                place = np.argwhere(outside)[0]
                where = f"row {place[0]} of {name} has" if array.ndim else f"{name} is"
                raise InputError(
                    f"{samples.origin}: {where} {array[tuple(place)]}, which the model cannot look up",
                    why=f"its graph takes {domain.origin}",
                    do="leave such rows out, or map what is unknown to an id of the table",
                )


def _invented(
    inputs: Sequence[TensorSpec], domains: Mapping[str, InputDomain], traced: Mapping[str, int]
) -> list[Trial]:
    """`ROWS` rows, in batches of the traced size; one batch where values depend on its size."""
    letter = batch_letter(inputs)
    if letter is None or any(domain.size == letter for domain in domains.values()):
        return [(dict(traced), random_inputs(inputs, traced, seed=200, domains=domains))]
    rows = random_inputs(inputs, {**traced, letter: ROWS}, seed=200, domains=domains)
    return _in_batches(inputs, rows, traced)


def _given(inputs: Sequence[TensorSpec], group: Mapping[str, Any], traced: Mapping[str, int]) -> list[Trial]:
    """At most `SAMPLE_ROWS` rows of one group, in batches of the traced size; of a fixed batch, whole batches."""
    letter = batch_letter(inputs)
    if letter is not None:
        return _in_batches(inputs, group, traced, most=SAMPLE_ROWS)
    size = max(1, int(inputs[0].shape[0])) if inputs[0].shape else 1
    count = len(group[inputs[0].name]) // size if inputs[0].shape else 1
    cut = [
        {s.name: group[s.name][i * size : (i + 1) * size] if s.shape else group[s.name] for s in inputs}
        for i in range(min(count, SAMPLE_ROWS))
    ]
    return [(_sizes_of(inputs, feeds), feeds) for feeds in cut]


def _in_batches(
    inputs: Sequence[TensorSpec], rows: Mapping[str, Any], traced: Mapping[str, int], *, most: int = ROWS
) -> list[Trial]:
    """Rows spread over all, the last batch filled up with the first ones; inputs without a batch stay whole."""
    letter = batch_letter(inputs)
    assert letter is not None
    batched = [spec.name for spec in inputs if spec.shape and spec.shape[0] == letter]
    count, size = len(rows[batched[0]]), traced[letter]
    some = np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))
    some = np.concatenate([some, np.resize(some, -len(some) % size)])
    found = []
    for begin in range(0, len(some), size):
        order = some[begin : begin + size]
        feeds = {name: np.ascontiguousarray(a[order]) if name in batched else a for name, a in rows.items()}
        found.append((_sizes_of(inputs, feeds), feeds))
    return found


def _sizes_of(inputs: Sequence[TensorSpec], feeds: Mapping[str, Any]) -> dict[str, int]:
    return {
        dimension: int(size)
        for spec in inputs
        for dimension, size in zip(spec.shape, feeds[spec.name].shape, strict=True)
        if isinstance(dimension, str)
    }


def _in_words(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{letter}={n}" for letter, n in sizes.items()) or "its only shape"


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
    where = _in_words(sizes)
    try:
        got = session.infer(feeds)
    except TrtshipError as error:
        raise _mismatch(where, f"onnxruntime refused it: {error.why or error.what}") from error
    found = [measure(wanted[name], got[name], output=name, sizes=sizes) for name in wanted]
    largest = max((m.rel_l2 or 0.0 for m in found), default=0.0)
    if all(m.finite for m in found) and largest > bound:
        noise = fp32_noise(graph, feeds, wanted)
        bound *= max(1.0, noise.gain)
        floors = noise.floors(bound)  # of rows that are next to nothing
        found = [measure(wanted[n], got[n], output=n, sizes=sizes, floor=floors.get(n, 0.0)) for n in wanted]
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
    inputs, sizes = original.inputs, traced
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
        found = [original.infer(feeds) for _, feeds in _invented(original.inputs, domains, sizes)]
    except Exception as error:  # the user's own code may raise anything
        why = error.why or error.what if isinstance(error, TrtshipError) else f"{type(error).__name__}: {error}"
        return f"the model fails ({why.strip().splitlines()[0][:200]})"
    return "" if all(map(_finite, found)) else "the model gives NaN or Inf"


def _finite(outputs: Mapping[str, Any]) -> bool:
    return all(np.isfinite(np.asarray(a, np.float64)).all() for a in outputs.values())
