"""Two graphs that should compute the same, run side by side through onnxruntime."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from trtship.measure import Measure, measure, random_inputs
from trtship.session.base import Array
from trtship.session.onnxruntime import OnnxRuntimeSession
from trtship.spec import Record, TensorSpec

Case = Literal["random", "adversarial"]
SIZES = (1, 2, 3)
"""What each dynamic dimension is set to, all at once, unless the caller says otherwise."""
LARGE = 30.0
"""Deviation of adversarial inputs: far outside what normalised pictures hold, and far inside every float's range."""


class Difference(Record, frozen=True):
    """How one output of the second graph differs from the first one's, at one set of sizes, on one kind of input."""

    case: Case
    measure: Measure


def differences(
    before: Path, after: Path, *, sizes: Sequence[Mapping[str, int]] | None = None, seed: int = 0
) -> tuple[Difference, ...]:
    """Run both on the same inputs: random ones at every entry of `sizes` (default: each letter 1, 2, 3), adversarial
    ones at the first, since they test values and not shapes.

    Both run as they are written, without onnxruntime's own optimizations. Raises GraphError when either does not
    load, or fails while it runs.
    """
    found = []
    with OnnxRuntimeSession(before, optimize=False) as first, OnnxRuntimeSession(after, optimize=False) as second:
        wanted = sizes if sizes is not None else default_sizes(first.inputs)
        runs: list[tuple[Case, Mapping[str, int]]] = [("random", size) for size in wanted]
        runs += [("adversarial", size) for size in wanted[:1]]
        for case, size in runs:
            feeds = make_feeds(first.inputs, size, case=case, seed=seed)
            expected, actual = first.infer(feeds), second.infer(feeds)
            found += [
                Difference(case=case, measure=measure(array, actual[name], output=name, sizes=size))
                for name, array in expected.items()
            ]
    return tuple(found)


def default_sizes(inputs: Iterable[TensorSpec]) -> tuple[dict[str, int], ...]:
    """One entry for a static graph; for a dynamic one, each letter 1, then 2, then 3."""
    letters = sorted({letter for spec in inputs for letter in spec.letters})
    return tuple(dict.fromkeys(letters, size) for size in (SIZES if letters else (1,)))


def make_feeds(
    inputs: Sequence[TensorSpec], sizes: Mapping[str, int], *, case: Case = "random", seed: int = 0
) -> dict[str, Array]:
    """Seeded numpy inputs, as `trtship.measure.random_inputs` draws them.

    Adversarial floats are 30 times as large, and the first half of each row along the last axis is one value, as in
    a picture with a flat, saturated area.
    """
    feeds = random_inputs(inputs, sizes, seed=seed)
    if case == "adversarial":
        for array in feeds.values():
            if array.dtype.kind == "f" and array.ndim:
                array *= LARGE
                array[..., : array.shape[-1] // 2] = LARGE
    return feeds
