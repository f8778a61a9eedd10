"""Put a precision into a graph: in a strongly typed network the tensors' types say how TensorRT computes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import msgspec

from trtship.errors import GraphError, SpecError
from trtship.graphs.operators import FP32_STATISTICS
from trtship.graphs.storage import EXTERNAL_OVER
from trtship.passes.assign import Assignment, is_float
from trtship.passes.base import Interface, Pass, PassResult
from trtship.passes.einsum import write_small_letters
from trtship.passes.gelu import write_gelus
from trtship.passes.opset import raise_opset
from trtship.passes.outer import write_outer_products
from trtship.passes.retype import Clipped, Retyping
from trtship.spec import Precision, Record, TensorSpec

if TYPE_CHECKING:
    import onnx_ir

BFLOAT16_OPSET = 22
"""The first in which convolutions and pooling take bfloat16."""


class PrecisionReport(Record, frozen=True):
    """What the pass did. Counts are of nodes, `constants` and `underflowed` of weight tensors and of their elements.

    `kept` counts the nodes that stay in fp32 by operator, `asked` names those that were to. `underflowed` weights were
    not 0 and are now; `clipped` lists the constants with finite elements beyond the type's range. `gelus` were written
    as `trtship.passes.gelu` says.
    """

    precision: Precision
    io_dtype: str
    low: int = 0
    kept: dict[str, int] = msgspec.field(default_factory=dict)
    asked: tuple[str, ...] = ()
    casts: int = 0
    constants: int = 0
    underflowed: int = 0
    clipped: tuple[Clipped, ...] = ()
    gelus: int = 0


class ToPrecision(Pass[PrecisionReport]):
    """fp16 and bf16: weights and activations in that type, statistics in fp32, inputs and outputs in `io_dtype`.

    `keep` names nodes that compute in fp32 between casts; a product among them may still be multiplied in TF32.

    fp8 and int8 take a graph with Q/DQ (`trtship.passes.quantize`), and make what is not between these fp16. Scales are
    fp16 numbers then, too: those of a graph from elsewhere are rounded.

    fp32 leaves the graph as it is, but for the letters of einsum equations, and so does tf32, outer products of
    positions apart (`trtship.passes.outer`): TF32 is a way to multiply fp32 tensors, which the builder chooses.
    Softmax runs in fp32 between two casts; LayerNormalization says `stash_type=1`, fp32 statistics, for itself.
    """

    name: ClassVar[str] = "precision"

    def __init__(self, precision: Precision, *, io_dtype: str = "float32", keep: Collection[str] = ()) -> None:
        if io_dtype not in ("float32", precision.graph_dtype):
            why = f"a graph in {precision.value} has inputs and outputs in float32 or {precision.graph_dtype}"
            raise SpecError(f"inputs and outputs cannot be {io_dtype}", why=why, do="leave it away for float32")
        if keep and precision.graph_dtype == "float32":
            raise SpecError(
                f"no nodes can be kept in fp32 in {precision.value}", why="all are", do="leave them away, or use fp16"
            )
        self.precision, self.io_dtype, self.keep = precision, io_dtype, tuple(sorted(keep))

    def expected(self, inputs_and_outputs: Interface) -> Interface:
        def retyped(spec: TensorSpec) -> TensorSpec:
            dtype = self.io_dtype if spec.dtype == "float32" else spec.dtype
            return TensorSpec(name=spec.name, shape=spec.shape, dtype=dtype)

        inputs, outputs = inputs_and_outputs
        return tuple(map(retyped, inputs)), tuple(map(retyped, outputs))

    def call(self, model: onnx_ir.Model) -> PassResult[PrecisionReport]:
        """Edits `model`. Raises GraphError for subgraphs, tensors of unknown type, and opsets that are too old."""
        renamed = write_small_letters(model) > 0
        if self.precision.graph_dtype == "float32":
            modified = (self.precision is Precision.TF32 and _without_outer_products(model)) or renamed
            return PassResult(model, modified, PrecisionReport(precision=self.precision, io_dtype=self.io_dtype))
        import onnx_ir as ir

        if self.precision.quantized and not any(node.op_type == "DequantizeLinear" for node in model.graph):
            raise GraphError(
                f"the graph is not quantized to {self.precision.value}",
                why="it has no DequantizeLinear",
                do="`trtship deploy --calib DIR` calibrates and quantizes; or use --precision fp16",
            )
        low = ir.DataType[self.precision.graph_dtype.upper()]
        prepare(model, low)
        write_outer_products(model)
        assignment = Assignment(model, low, keep=self.keep)
        for node in model.graph:
            if node.op_type in FP32_STATISTICS:
                node.attributes["stash_type"] = ir.AttrInt64("stash_type", 1)
        floating = [node for node in model.graph if any(map(is_float, (*node.inputs, *node.outputs)))]
        retyping = Retyping(model, low, assignment.full, low_io=self.io_dtype != "float32")
        retyping.run()
        report = PrecisionReport(
            precision=self.precision,
            io_dtype=self.io_dtype,
            low=len(floating) - len(assignment.full),
            kept=dict(sorted(Counter(node.op_type for node in assignment.full).items())),
            asked=self.keep,
            casts=retyping.casts,
            constants=retyping.constants,
            underflowed=retyping.underflowed,
            clipped=tuple(retyping.clipped),
            gelus=write_gelus(model),
        )
        return PassResult(model, True, report)


def _without_outer_products(model: onnx_ir.Model) -> bool:
    """Infer types and write outer products of positions as multiplications; return whether there were any."""
    from onnx_ir.passes.common import ShapeInferencePass

    ShapeInferencePass(strict_mode=False)(model)
    return write_outer_products(model) > 0


def to_precision(
    source: Path,
    target: Path,
    precision: Precision,
    *,
    io_dtype: str = "float32",
    keep: Collection[str] = (),
    external_over: int = EXTERNAL_OVER,
) -> PrecisionReport:
    """Write the graph at `source` to `target` in a precision, the nodes named in `keep` in fp32.

    Raises GraphError, SpecError (a name that no node has among them), OutputError.
    """
    return ToPrecision(precision, io_dtype=io_dtype, keep=keep).apply(source, target, external_over=external_over)


def prepare(model: onnx_ir.Model, low: onnx_ir.DataType) -> None:
    """Functions inlined, constants as initializers, every tensor's type known."""
    from onnx_ir.passes import common

    if model.functions:
        common.InlinePass()(model)
    for node in model.graph:
        if any(attribute.type.name in ("GRAPH", "GRAPHS") for attribute in node.attributes.values()):
            raise GraphError(
                f"the graph branches or loops in its node {node.name} ({node.op_type})",
                why="precisions are set for plain graphs alone",
                do="export the model without data-dependent control flow, or use --precision fp32",
            )
    if low.name == "BFLOAT16":
        raise_opset(model, BFLOAT16_OPSET)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.ShapeInferencePass(strict_mode=False)(model)
    for node in model.graph:
        for output in node.outputs:
            if output.name and output.dtype is None:
                why = f"the output {output.name} of {node.op_type} (node {node.name}) has no type"
                raise GraphError("the graph's types cannot be inferred", why=why, do="use --precision fp32")
