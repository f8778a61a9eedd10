"""ONNX -> TensorRT as everybody does it: the half-precision module exported, and built, nothing in between."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from trtship.bench.peers.base import low_copy, low_dtype, low_specs
from trtship.bench.plan import PlanGraph, Plans
from trtship.spec import Precision, ShapeRange, TensorSpec


class OnnxTensorRT(Plans):
    name: ClassVar[str] = "onnx-tensorrt"

    def export(
        self,
        module: Any,
        target: Path,
        *,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        precision: Precision,
        feeds: dict[str, Any],
        ranges: dict[str, ShapeRange],
    ) -> PlanGraph:
        """Write the graph, once for all batches; `feeds` are two rows or more to trace it with."""
        import torch

        dtype = low_dtype(precision)
        example = [torch.from_numpy(feeds[s.name][:2].copy()) for s in inputs]
        dims = {letter: torch.export.Dim(letter, min=1, max=2**16) for spec in inputs for letter in spec.letters}
        shapes = tuple({axis: dims[d] for axis, d in enumerate(s.shape) if isinstance(d, str)} for s in inputs)
        with torch.no_grad():
            torch.onnx.export(
                low_copy(module, dtype),
                tuple(t.to(dtype) if t.is_floating_point() else t for t in example),
                str(target),
                dynamo=True,
                verbose=False,
                input_names=[s.name for s in inputs],
                output_names=[s.name for s in outputs],
                dynamic_shapes=shapes,
            )
        return PlanGraph(
            name="ONNX -> TensorRT, CUDA graph",
            graph=str(target),
            inputs=low_specs(inputs, precision),
            outputs=low_specs(outputs, precision),
            ranges=ranges,
            precision=precision,
            family=None,
        )
