"""Which tensors the comparison layer by layer reads out, in graphs whose outputs feed nodes too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import ShapeInferencePass

from graphs import written
from trtship.graphs.storage import load_graph
from trtship.passes import to_precision
from trtship.session.onnxruntime import OnnxRuntimeSession
from trtship.spec import Precision
from trtship.verify.error_by_layer import errors_by_layer, spine
from trtship.verify.reference import make_reference

HEAD = "a = MatMul(x, w) "
BODIES = {
    "classes": ("(float[B, 8] x) => (float[B, 8] y, int64[B] c)", "y = Relu(a) c = ArgMax<axis = 1, keepdims = 0>(y)"),
    "classes, first": (
        "(float[B, 8] x) => (int64[B] c, float[B, 8] y)",
        "c = ArgMax<axis = 1, keepdims = 0>(a) y = Relu(a)",
    ),
    "a mask": ("(float[B, 8] x) => (float[B, 8] y, bool[B, 8] m)", "y = Relu(a) m = Greater(y, zero)"),
    "a shape": ("(float[B, 8] x) => (float[B, 8] y)", "s = Shape(a) r = Relu(a) y = Reshape(r, s)"),
    "an output that is read again": ("(float[B, 8] x) => (float[B, 8] y, float[B, 8] z)", "y = Relu(a) z = Tanh(y)"),
}


@pytest.mark.parametrize("name", BODIES)
def test_an_output_that_feeds_a_node_is_no_fault(name: str, tmp_path: Path) -> None:
    interface, rest = BODIES[name]
    w = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
    graph = written(tmp_path / "a.onnx", f"{interface} {{ {HEAD} {rest} }}", w=w, zero=np.array(0, np.float32))
    ir.save(ShapeInferencePass()(load_graph(graph)).model, graph)
    read = ["a", "r" if name == "a shape" else "y"]
    assert [value.name for value in spine(load_graph(graph).graph)][:2] == read
    to_precision(graph, tmp_path / "low.onnx", Precision.FP16)
    with OnnxRuntimeSession(graph) as session:
        reference = make_reference(session, sizes={})
    found = errors_by_layer(graph, tmp_path / "low.onnx", reference, rows=3)
    assert found.reason == ""
    assert set(read) <= {layer.tensor for layer in found.layers}
    assert all(layer.rel_l2 is not None and layer.rel_l2 < 0.01 for layer in found.layers)
