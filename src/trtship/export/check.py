"""Is the exported graph the model, at the traced batch and at others?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from trtship.errors import ExportMismatchError, GraphError, SourceError, TrtshipError
from trtship.export.outputs import Shapes
from trtship.graphs import load_graph, rounding_bound
from trtship.graphs.noise import fp32_gain
from trtship.measure import Measure, measure, random_inputs
from trtship.session.onnxruntime import OnnxRuntimeSession
from trtship.session.torch import TorchSession
from trtship.spec import Precision, ShapeRange, TensorSpec, batch_letter


class Checked(msgspec.Struct, frozen=True):
    """What the check found: a measure and a shape for every output and set of sizes, and the specs of the outputs."""

    measures: tuple[Measure, ...]
    outputs: tuple[TensorSpec, ...]
    shapes: Shapes
    bound: float
    bound_from: str


def check_export(
    module: Any,
    graph: Path,
    *,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[str],
    traced: Mapping[str, int],
    ranges: Mapping[str, ShapeRange],
) -> Checked:
    """Compare onnxruntime on `graph` with eager PyTorch in fp32, on random inputs, at `sizes_around(traced)`.

    The bound is what rounding in fp32 explains for this graph (`trtship.graphs.rounding`); both sides round, so it
    counts twice. Where that is not enough, the network's own gain is measured, and counts as well. Raises
    ExportMismatchError, or GraphError where the graph cannot even be loaded.
    """
    derived = rounding_bound(load_graph(graph), Precision.FP32)
    bound, why = 2 * derived.bound, f"twice the bound of {derived.derivation}"
    measures: list[Measure] = []
    shapes: dict[str, list[tuple[int, ...]]] = {name: [] for name in outputs}
    batch = batch_letter(inputs)
    with OnnxRuntimeSession(graph) as session:
        specs = tuple(TensorSpec(name=s.name, shape=s.shape, dtype=s.dtype) for s in session.outputs)
        _check_names(session, inputs, outputs, graph)
        eager = TorchSession(module, inputs=inputs, outputs=specs)
        for index, sizes in enumerate(sizes_around(traced, ranges, batch=batch)):
            feeds = random_inputs(inputs, sizes, seed=100 + index)
            expected = eager.infer(feeds)
            _check_finite(expected, sizes)
            try:
                found = session.infer(feeds)
            except TrtshipError as error:
                raise _mismatch(sizes, traced, f"onnxruntime refused it: {error.why or error.what}") from error
            for name in outputs:
                shapes[name].append(tuple(found[name].shape))
                result = measure(expected[name], found[name], output=name, sizes=sizes)
                measures.append(result)
                if not result.finite:
                    raise _mismatch(sizes, traced, f"{name} has NaN or Inf")
                if result.rel_l2 is not None and bound < result.rel_l2 and bound == 2 * derived.bound:
                    gain = max(1.0, fp32_gain(graph, feeds))
                    bound, why = gain * bound, f"{why}, times the network's measured gain {gain:.3g}"
                if result.rel_l2 is None or result.rel_l2 > bound:
                    raise _mismatch(
                        sizes, traced, f"{name} is off by {result.rel_l2:.2g} (relative L2), over {bound:.2g}"
                    )
    return Checked(tuple(measures), specs, shapes, bound, why)


def sizes_around(
    traced: Mapping[str, int], ranges: Mapping[str, ShapeRange], *, batch: str | None
) -> tuple[dict[str, int], ...]:
    """The traced sizes, then those with the letter `batch` at 1 and at one more, then each other letter at the ends
    of its range. Without letters, only the one set."""
    found = [dict(traced)]
    for letter, size in traced.items():
        others = (1, size + 1) if letter == batch else (ranges[letter].min, ranges[letter].max)
        found += [{**traced, letter: n} for n in dict.fromkeys(others) if n != size]
    return tuple(found)


def _check_finite(outputs: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
    for name, array in outputs.items():
        if not np.isfinite(array.astype(np.float64)).all():
            raise SourceError(
                f"the model itself gives NaN or Inf in {name}",
                why=f"PyTorch does, on random inputs, at {dict(sizes)}",
                do="check its weights and its --input; nothing can be held against such outputs",
            )


def _mismatch(sizes: Mapping[str, int], traced: Mapping[str, int], why: str) -> ExportMismatchError:
    where = ", ".join(f"{letter}={n}" for letter, n in sizes.items()) or "its only shape"
    tail = (
        ""
        if dict(sizes) == dict(traced)
        else ", while it was traced at " + ", ".join(f"{letter}={n}" for letter, n in traced.items())
    )
    return ExportMismatchError(
        f"the exported graph is not the model: it differs from PyTorch at {where}{tail}",
        why=why,
        do="look for a batch size that becomes a Python int in the model (int(x.shape[0] / n)), and use -1 there",
    )


def _check_names(
    session: OnnxRuntimeSession, inputs: Sequence[TensorSpec], outputs: Sequence[str], graph: Path
) -> None:
    found = [s.name for s in session.inputs], [s.name for s in session.outputs]
    wanted = [s.name for s in inputs], list(outputs)
    if sorted(found[0]) != sorted(wanted[0]) or found[1] != wanted[1]:
        raise GraphError(
            f"the exported graph {graph.name} has other inputs or outputs than the model",
            why=f"inputs {found[0]} and outputs {found[1]}, expected {wanted[0]} and {wanted[1]}",
            do="an input that the model does not use is dropped by the exporter: leave it out of --input",
        )
