"""What a graph costs where nothing can be timed: a roofline over its nodes. Good for comparing, not for promising.

Each node takes the longer of its arithmetic and its traffic, `max(operations / rate, bytes / bandwidth)` (S. Williams,
A. Waterman and D. Patterson, "Roofline", CACM 52(4), 2009). Rates and bandwidth are those of an H100 SXM (NVIDIA, "H100
Tensor Core GPU", dense): other GPUs have other ones in about the same proportions.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from trtship.graphs import load_graph
from trtship.graphs.operators import ACCUMULATING, MOVES, POOLING, PRODUCTS, REDUCTIONS
from trtship.passes.quantize_places import name_of

if TYPE_CHECKING:
    import onnx_ir

BANDWIDTH = 3.35e12
RATES = {
    "FLOAT": 67e12,
    "TF32": 494e12,
    "FLOAT16": 989e12,
    "BFLOAT16": 989e12,
    "FLOAT8E4M3FN": 1979e12,
    "INT8": 1979e12,
}
BYTES = {"FLOAT": 4, "FLOAT16": 2, "BFLOAT16": 2, "FLOAT8E4M3FN": 1, "INT8": 1}
FREE = MOVES | {"Cast", "QuantizeLinear", "DequantizeLinear", "Identity", "Shape", "Constant"}
KERNELS = PRODUCTS | REDUCTIONS | ACCUMULATING | POOLING
"""What has a kernel of its own; TensorRT fuses the rest into these."""


def estimated_ms(graph: Path, *, batch: int, tf32: bool) -> float:
    """Of a strongly typed graph at a batch size: the sum over what has a kernel of its own. `tf32` says whether fp32
    products may be multiplied in TF32. Raises GraphError."""
    return sum(_cost(node, batch, tf32, "") for node in _typed(graph).graph if node.op_type in KERNELS) * 1e3


def node_costs(graph: Path, *, batch: int, tf32: bool, kind: str) -> dict[str, float]:
    """Milliseconds by node name, as if all floating tensors of the graph were of `kind`. Raises GraphError."""
    return {
        name_of(node): _cost(node, batch, tf32, kind) * 1e3
        for node in _typed(graph).graph
        if node.op_type not in FREE and any(_kind(value, kind) in BYTES for value in node.outputs)
    }


def _typed(graph: Path) -> onnx_ir.Model:
    from onnx_ir.passes.common import ShapeInferencePass

    return ShapeInferencePass(strict_mode=False)(load_graph(graph)).model


def _cost(node: onnx_ir.Node, batch: int, tf32: bool, kind: str) -> float:
    values = [value for value in (*node.inputs, *node.outputs) if value is not None]
    traffic = sum(_elements(value, batch) * BYTES.get(_kind(value, kind), 8) for value in values)
    operations, rate = 0.0, RATES["FLOAT"]
    if node.op_type in PRODUCTS and node.inputs[1] is not None:
        operations = 2.0 * _elements(node.outputs[0], batch) * _terms(node)
        of = _kind(node.inputs[1], kind)
        rate = RATES["TF32" if of == "FLOAT" and tf32 else of] if of in RATES else rate
    return max(operations / rate, traffic / BANDWIDTH)


def _kind(value: onnx_ir.Value, kind: str) -> str:
    """The type of a tensor; of one that a DequantizeLinear makes, that of what it reads."""
    maker = value.producer()
    if maker is not None and maker.op_type == "DequantizeLinear" and maker.inputs[0] is not None:
        value = maker.inputs[0]
    found = "" if value.dtype is None else value.dtype.name
    return kind if kind and found in ("FLOAT", "FLOAT16", "BFLOAT16") else found


def _elements(value: onnx_ir.Value, batch: int) -> int:
    """A size that is not known counts as the batch."""
    if value.shape is None:
        return batch
    return math.prod(size if isinstance(size, int) else batch for size in value.shape)


def _terms(node: onnx_ir.Node) -> int:
    """Of the sums in a product."""
    weight = node.inputs[1]
    shape = [] if weight is None or weight.shape is None else [s if isinstance(s, int) else 1 for s in weight.shape]
    if len(shape) < 2:
        return 1
    if node.op_type == "MatMul":
        return shape[-2]
    if node.op_type == "Gemm":
        return shape[-1 if node.attributes.get_int("transB", 0) else -2]
    return math.prod(shape[1:]) if node.op_type == "Conv" else shape[0]
