"""How large the elements of tensors are: what a quantization step is measured against."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from trtship.calibrate.feeds import Feeds
from trtship.files import temporary_folder
from trtship.graphs.storage import load_graph, save_graph
from trtship.session.onnxruntime import OnnxRuntimeSession

BATCHES = 4
"""A mean over all elements of a tensor needs few pictures."""


def root_mean_squares(graph: Path, tensors: Sequence[str], feeds: Feeds) -> dict[str, float]:
    """Of all elements of each tensor of the fp32 graph, on the first `BATCHES` batches. Raises GraphError."""
    import onnx_ir as ir

    model = load_graph(graph)
    values = {value.name: value for value in (*model.graph.inputs, *(o for node in model.graph for o in node.outputs))}
    model.graph.outputs.clear()
    for index, name in enumerate(tensors):
        square, size = (f"trtship.{what}.{index}" for what in ("squares", "size"))
        for op, result, kind in (("ReduceSumSquare", square, ir.DataType.FLOAT), ("Size", size, ir.DataType.INT64)):
            attributes = [ir.AttrInt64("keepdims", 0)] if op == "ReduceSumSquare" else []
            output = ir.Value(name=result, shape=ir.Shape([]), type=ir.TensorType(kind))
            model.graph.append(ir.Node("", op, [values[name]], attributes, outputs=[output]))
            model.graph.outputs.append(output)
    squares, sizes = dict.fromkeys(tensors, 0.0), dict.fromkeys(tensors, 0)
    with temporary_folder() as folder:
        save_graph(model, folder / "sizes.onnx")
        with OnnxRuntimeSession(folder / "sizes.onnx") as session:
            for _, batch in zip(range(BATCHES), feeds, strict=False):
                found = session.infer(batch)
                for index, name in enumerate(tensors):
                    squares[name] += float(found[f"trtship.squares.{index}"])
                    sizes[name] += int(found[f"trtship.size.{index}"])
    return {name: math.sqrt(squares[name] / sizes[name]) if sizes[name] else 0.0 for name in tensors}
