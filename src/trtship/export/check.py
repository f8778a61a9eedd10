"""Is the exported graph the model, at every size that is promised?"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from trtship.errors import ExportMismatchError, GraphError, SourceError, TrtshipError
from trtship.export.outputs import Shapes
from trtship.export.sizes import Allowed, Sizes, all_allowed, must_run, sizes_to_compare
from trtship.graphs import load_graph, rounding_bound
from trtship.graphs.noise import fp32_noise
from trtship.input_values import InputDomain, random_inputs
from trtship.measure import Measure, measure
from trtship.session.onnxruntime import OnnxRuntimeSession
from trtship.session.torch import TorchSession
from trtship.spec import Precision, ShapeRange, TensorSpec, batch_letter

BUDGET = 10.0
"""Seconds for sizes beyond those nearest to the traced ones. Of a model that is slower, the later ones are left to the
comparison of the precisions, which runs at the same sizes."""
NEAREST = 3
"""Sets of sizes that are always compared: the traced one, batch 1, and one more."""


class Checked(msgspec.Struct, frozen=True):
    """What the check found: a measure and a shape for every output and set of sizes, and the specs of the outputs."""

    measures: tuple[Measure, ...]
    outputs: tuple[TensorSpec, ...]
    shapes: Shapes
    bound: float
    bound_from: str


class Difference(Exception):
    """Of a size at which the graph and PyTorch are not the same; `model_fails` where PyTorch takes no such input."""

    def __init__(self, why: str, *, model_fails: bool = False) -> None:
        super().__init__(why)
        self.why, self.model_fails = why, model_fails


class Comparer:
    """The graph in onnxruntime beside the module in PyTorch, in fp32.

    The bound is what rounding in fp32 explains for this graph (`trtship.graphs.rounding`); both sides round, so it
    counts twice. Where that is not enough, the network's own gain is measured, and counts as well.
    """

    def __init__(
        self,
        module: Any,
        graph: Path,
        session: OnnxRuntimeSession,
        *,
        inputs: Sequence[TensorSpec],
        domains: Mapping[str, InputDomain] | None,
    ) -> None:
        self.outputs = tuple(TensorSpec(name=s.name, shape=s.shape, dtype=s.dtype) for s in session.outputs)
        self.inputs, self.domains = tuple(inputs), domains
        derived = rounding_bound(load_graph(graph), Precision.FP32)
        self._derived = self.bound = 2 * derived.bound
        self.bound_from = f"twice the bound of {derived.derivation}"
        self._graph, self._session = graph, session
        self._eager = TorchSession(module, inputs=inputs, outputs=self.outputs)

    def compare(self, sizes: Sizes, *, seed: int = 100) -> tuple[tuple[Measure, ...], dict[str, tuple[int, ...]]]:
        """Return a measure for each output, and its shape. Raises Difference; SourceError where the model gives NaN."""
        feeds = random_inputs(self.inputs, sizes, seed=seed, domains=self.domains)
        expected, failure = self._expected(feeds)
        if expected is not None:
            _check_finite(expected, sizes)
        try:
            found = self._session.infer(feeds)
        except TrtshipError as error:
            raise Difference(
                f"onnxruntime refused it: {error.why or error.what}", model_fails=expected is None
            ) from error
        if expected is None:
            raise Difference(f"PyTorch fails there ({failure}), and the graph gives an answer")
        return self._measures(expected, found, feeds, sizes), {n: tuple(a.shape) for n, a in found.items()}

    def judge(self, sizes: Sizes) -> Literal["same", "differ", "both fail"]:
        """Return whether both give the same outputs at these sizes, or neither takes them."""
        try:
            self.compare(sizes)
        except Difference as difference:
            return "both fail" if difference.model_fails else "differ"
        except SourceError:
            return "differ"
        return "same"

    def _expected(self, feeds: Mapping[str, Any]) -> tuple[dict[str, Any] | None, str]:
        """PyTorch's outputs; None, and why, where the model takes no such inputs."""
        try:
            return self._eager.infer(feeds), ""
        except TrtshipError:
            raise
        except MemoryError:
            raise
        except Exception as error:  # a size that the model does not take
            return None, f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200] if str(error) else ''}"

    def _measures(
        self, expected: Mapping[str, Any], found: Mapping[str, Any], feeds: Mapping[str, Any], sizes: Sizes
    ) -> tuple[Measure, ...]:
        measures = []
        for spec in self.outputs:
            name = spec.name
            result = measure(expected[name], found[name], output=name, sizes=sizes)
            measures.append(result)
            if not result.finite:
                raise Difference(f"{name} has NaN or Inf")
            if expected[name].shape != found[name].shape:
                raise Difference(f"{name} has the shape {list(found[name].shape)}, not {list(expected[name].shape)}")
            if result.rel_l2 is not None and result.rel_l2 > self.bound:
                noise = fp32_noise(self._graph, feeds, expected)
                if self.bound == self._derived:
                    gain = max(1.0, noise.gain)
                    self.bound, why = gain * self.bound, f"times the network's measured gain {gain:.3g}"
                    self.bound_from = f"{self.bound_from}, {why}"
                floor = noise.floors(self.bound).get(name, 0.0)  # of rows that are next to nothing
                result = measure(expected[name], found[name], output=name, sizes=sizes, floor=floor)
                measures[-1] = result
            if result.rel_l2 is None or result.rel_l2 > self.bound:
                raise Difference(f"{name} is off by {result.rel_l2:.2g} (relative L2), over {self.bound:.2g}")
        return tuple(measures)


@contextmanager
def comparing(
    module: Any,
    graph: Path,
    *,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[str],
    domains: Mapping[str, InputDomain] | None = None,
) -> Iterator[Comparer]:
    """Open a Comparer. Raises GraphError where the graph cannot be loaded, or has other inputs and outputs."""
    with OnnxRuntimeSession(graph) as session:
        _check_names(session, inputs, outputs, graph)
        yield Comparer(module, graph, session, inputs=inputs, domains=domains)


def check_export(
    module: Any,
    graph: Path,
    *,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[str],
    traced: Mapping[str, int],
    ranges: Mapping[str, ShapeRange],
    allowed: Allowed = all_allowed,
    suspects: Sequence[Sizes] = (),
    domains: Mapping[str, InputDomain] | None = None,
) -> Checked:
    """Compare onnxruntime on `graph` with eager PyTorch in fp32, on invented inputs, at `sizes_to_compare(traced)`.

    Args:
        module: The model.
        graph: The ONNX graph.
        inputs: The inputs, with letters for dynamic sizes.
        outputs: The names of the outputs.
        traced: The sizes of the export.
        ranges: The sizes that are promised; at each letter's MIN, OPT and MAX the model itself must run.
        allowed: Which sizes the rules of the graph allow; others are not compared.
        suspects: More sizes to compare.
        domains: The values that the inputs may hold.

    Raises:
        ExportMismatchError: the graph is not the model at one of the sizes.
        GraphError: the graph cannot even be loaded.
        SourceError: the model itself fails, or gives NaN.
    """
    wanted = [
        *sizes_to_compare(traced, ranges, batch=batch_letter(inputs), allowed=allowed),
        *(s for s in suspects if allowed(s)),
    ]
    measures: list[Measure] = []
    shapes: dict[str, list[tuple[int, ...]]] = {name: [] for name in outputs}
    with comparing(module, graph, inputs=inputs, outputs=outputs, domains=domains) as comparer:
        clock = _Clock()
        for index, sizes in enumerate(wanted):
            if index >= NEAREST and not clock.has_time(sizes):
                continue
            with clock.timed(sizes, counts=index >= NEAREST):
                try:
                    found, there = comparer.compare(sizes, seed=100 + index)
                except Difference as difference:
                    if difference.model_fails and not must_run(sizes, traced, ranges):
                        continue
                    if difference.model_fails:
                        raise _model_fails(sizes, difference) from difference
                    raise mismatch(sizes, traced, difference.why) from difference
            measures += found
            for name in outputs:
                shapes[name].append(there[name])
        return Checked(tuple(measures), comparer.outputs, shapes, comparer.bound, comparer.bound_from)


class _Clock:
    """Seconds that comparisons take: those of a size not yet tried follow from the largest one so far."""

    def __init__(self) -> None:
        self._spent, self._a_unit = 0.0, 0.0

    def has_time(self, sizes: Sizes) -> bool:
        return self._spent + self._a_unit * _volume(sizes) <= BUDGET

    @contextmanager
    def timed(self, sizes: Sizes, *, counts: bool) -> Iterator[None]:
        begun = time.monotonic()
        yield
        seconds = time.monotonic() - begun
        self._a_unit = seconds / _volume(sizes)
        self._spent += seconds if counts else 0.0


def _volume(sizes: Sizes) -> float:
    return float(np.prod([*sizes.values(), 1], dtype=np.float64))


def _model_fails(sizes: Sizes, difference: Difference) -> SourceError:
    return SourceError(
        f"the model itself fails at {where(sizes)}",
        why=f"PyTorch does, and so does the graph: {difference.why}",
        do="choose a --batch or --size range whose MIN, OPT and MAX the model takes",
    )


def _check_finite(outputs: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
    for name, array in outputs.items():
        if not np.isfinite(array.astype(np.float64)).all():
            raise SourceError(
                f"the model itself gives NaN or Inf in {name}",
                why=f"PyTorch does, on random inputs, at {dict(sizes)}",
                do="check its weights and its --input; nothing can be held against such outputs",
            )


def where(sizes: Sizes) -> str:
    """`B=2, H=16`."""
    return ", ".join(f"{letter}={n}" for letter, n in sizes.items()) or "its only shape"


def mismatch(sizes: Sizes, traced: Sizes, why: str) -> ExportMismatchError:
    """The error of a graph that is not the model at `sizes`."""
    tail = "" if dict(sizes) == dict(traced) else f", while it was traced at {where(traced)}"
    return ExportMismatchError(
        f"the exported graph is not the model: it differs from PyTorch at {where(sizes)}{tail}",
        why=why,
        do="look for a size that becomes a Python number in the model, or that an `if` asks for: for a batch size, use "
        "-1 in the place of int(x.shape[0] / n)",
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
