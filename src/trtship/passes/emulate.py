"""Run a low precision graph's arithmetic where its kernels are missing: fp32, rounded after every node.

onnxruntime's CPU provider has no bfloat16 kernels, and few for float16. Around the others it puts casts of its own,
and takes them away again between neighbours: their results are neither rounded nor do they overflow, and the graph
looks better than it is. (Seen with 1.32: 0.7 * 1000 * 1000 / 1000 in float16 gives 700.) Casts that are written in
the graph stay.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from trtship.graphs.operators import MOVES
from trtship.graphs.storage import EXTERNAL_OVER
from trtship.passes.base import Interface, Pass, PassResult
from trtship.spec import Record, TensorSpec

if TYPE_CHECKING:
    import onnx_ir


class EmulationReport(Record, frozen=True):
    """How many tensors are rounded while the graph runs."""

    rounded: int


class Emulate(Pass[EmulationReport]):
    """Every float16 or bfloat16 tensor becomes float32 and holds such numbers: cast there and back after its node."""

    name: ClassVar[str] = "emulate"

    def expected(self, inputs_and_outputs: Interface) -> Interface:
        def retyped(spec: TensorSpec) -> TensorSpec:
            dtype = "float32" if spec.dtype in ("float16", "bfloat16") else spec.dtype
            return TensorSpec(name=spec.name, shape=spec.shape, dtype=dtype)

        inputs, outputs = inputs_and_outputs
        return tuple(map(retyped, inputs)), tuple(map(retyped, outputs))

    def call(self, model: onnx_ir.Model) -> PassResult[EmulationReport]:
        """Edits `model`, as `to_precision` made it: typed throughout."""
        import onnx_ir as ir

        full, lows = ir.DataType.FLOAT, (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
        for value in model.graph.initializers.values():
            if value.dtype in lows and value.const_value is not None:
                numbers = value.const_value.numpy().astype("float32")
                value.const_value = ir.Tensor(numbers, dtype=full, name=value.name)
                value.dtype = full
        for value in model.graph.inputs:
            if value.dtype in lows:
                value.dtype = full
        rounded = 0
        for node in list(model.graph):
            for value in node.outputs:
                if value.dtype not in lows:
                    continue
                low, value.dtype = value.dtype, full
                if node.op_type == "Cast":
                    node.attributes["to"] = ir.AttrInt64("to", int(full))
                if node.op_type not in MOVES:
                    self.after(model.graph, node, value, low)
                    rounded += 1
        return PassResult(model, rounded > 0, EmulationReport(rounded=rounded))

    def after(self, graph: onnx_ir.Graph, node: onnx_ir.Node, value: onnx_ir.Value, low: onnx_ir.DataType) -> None:
        """What becomes of `value`, which `node` made: it is rounded."""
        _round_trip(graph, node, value, low)


def _round_trip(graph: onnx_ir.Graph, node: onnx_ir.Node, value: onnx_ir.Value, low: onnx_ir.DataType) -> None:
    import onnx_ir as ir

    there = ir.Value(name=f"{value.name}/low", shape=value.shape, type=ir.TensorType(low))
    back = ir.Value(name=f"{value.name}/rounded", shape=value.shape, type=ir.TensorType(ir.DataType.FLOAT))
    value.replace_all_uses_with(back, replace_graph_outputs=True)
    if back.is_graph_output():
        value.name, back.name = f"{value.name}/exact", value.name
    casts = [
        ir.Node("", "Cast", [source], [ir.AttrInt64("to", int(result.dtype or 0))], outputs=[result])
        for source, result in ((value, there), (there, back))
    ]
    graph.insert_after(node, casts)


def emulate_low(source: Path, target: Path, *, external_over: int = EXTERNAL_OVER) -> EmulationReport:
    """Write the low precision graph at `source` to `target` so that it runs, and rounds, anywhere.

    Raises GraphError, OutputError.
    """
    return Emulate().apply(source, target, external_over=external_over)
