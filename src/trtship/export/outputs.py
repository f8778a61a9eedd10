"""Sizes of outputs that exporters leave open, and that are always the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from trtship.graphs import EXTERNAL_OVER, load_graph, save_graph
from trtship.spec import TensorSpec

Shapes = Mapping[str, Sequence[tuple[int, ...]]]
"""The shapes that each output had, one for each set of sizes that was run."""


def settle_outputs(
    graph: Path,
    outputs: Sequence[TensorSpec],
    shapes: Shapes,
    *,
    sizes: Sequence[Mapping[str, int]] = (),
    external_over: int = EXTERNAL_OVER,
) -> tuple[TensorSpec, ...]:
    """Return the specs with the sizes that were seen, and write them into the graph where they are news.

    A size that was the same in all runs is a number. One that the exporter took for a number, and that was not the
    same, is the letter that it goes with. Later passes work such sizes out, and would seem to have changed what goes
    out of the graph.

    Args:
        graph: The ONNX file.
        outputs: The specs as the graph has them.
        shapes: The shapes that each output had, one for each run.
        sizes: The sizes of the letters in each run, in the same order.
        external_over: In bytes; larger weights go to a file of their own.
    """
    import onnx_ir

    settled = tuple(msgspec.structs.replace(spec, shape=_settle(spec, shapes[spec.name], sizes)) for spec in outputs)
    model = load_graph(graph)
    wanted = [onnx_ir.Shape(spec.shape) for spec in settled]
    if [value.shape for value in model.graph.outputs] != wanted:
        for value, shape in zip(model.graph.outputs, wanted, strict=True):
            value.shape = shape
        save_graph(model, graph, external_over=external_over)
    return settled


def _settle(
    spec: TensorSpec, shapes: Sequence[tuple[int, ...]], runs: Sequence[Mapping[str, int]]
) -> tuple[int | str, ...]:
    found: list[int | str] = []
    for axis, declared in enumerate(spec.shape):
        seen = [shape[axis] for shape in shapes]
        if len(set(seen)) == 1:
            found.append(seen[0])
        elif isinstance(declared, str):
            found.append(declared)
        else:
            letters = [x for x in (runs[0] if runs else {}) if seen == [sizes[x] for sizes in runs]]
            found.append(letters[0] if letters else f"{spec.name}_{axis}")
    return tuple(found)
