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
    graph: Path, outputs: Sequence[TensorSpec], shapes: Shapes, *, external_over: int = EXTERNAL_OVER
) -> tuple[TensorSpec, ...]:
    """The specs, a size that was the same in all of `shapes` as a number; written into the graph where that is news.

    Later passes work such sizes out, and would seem to have changed what goes out of the graph.
    """
    import onnx_ir

    settled = tuple(msgspec.structs.replace(spec, shape=_settle(spec, shapes[spec.name])) for spec in outputs)
    model = load_graph(graph)
    wanted = [onnx_ir.Shape(spec.shape) for spec in settled]
    if [value.shape for value in model.graph.outputs] != wanted:
        for value, shape in zip(model.graph.outputs, wanted, strict=True):
            value.shape = shape
        save_graph(model, graph, external_over=external_over)
    return settled


def _settle(spec: TensorSpec, shapes: Sequence[tuple[int, ...]]) -> tuple[int | str, ...]:
    seen = [{shape[axis] for shape in shapes} for axis in range(len(spec.shape))]
    return tuple(sizes.pop() if len(sizes) == 1 else size for size, sizes in zip(spec.shape, seen, strict=True))
