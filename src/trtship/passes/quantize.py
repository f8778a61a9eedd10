"""fp32 graph -> the same graph with QuantizeLinear and DequantizeLinear around its products with weights.

It stays fp32 otherwise: `to_precision` with the same precision then makes the rest fp16. Scales are symmetric, as
TensorRT asks: one for each tensor of activations, one for each output channel of the weights, which are stored as
int8 or fp8 (E4M3).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import msgspec

from trtship.errors import SpecError
from trtship.graphs.storage import EXTERNAL_OVER
from trtship.passes.base import Pass, PassResult
from trtship.passes.opset import raise_opset
from trtship.passes.quantize_places import Product, chosen_products, name_of
from trtship.passes.quantize_scales import quantized_weight, scale_of
from trtship.passes.rewrite import Editor
from trtship.spec import Precision, Record

if TYPE_CHECKING:
    import onnx_ir

FLOAT8_OPSET = 19
"""The first in which QuantizeLinear makes float8e4m3fn."""


class QuantizeReport(Record, frozen=True):
    """What the pass did: the products `quantized`, those `left_out` with why, by node name; how many `tensors` of
    activations got a Q/DQ pair of their own, and the `scales` of those, by tensor name. `weights_only` says that
    activations were left as they are. Where `quantized` is empty, the graph is the source's."""

    precision: Precision
    weights_only: bool
    quantized: tuple[str, ...] = ()
    left_out: dict[str, str] = msgspec.field(default_factory=dict)
    scales: dict[str, float] = msgspec.field(default_factory=dict)

    @property
    def tensors(self) -> int:
        return len(self.scales)


class Quantize(Pass[QuantizeReport]):
    """See the module and `to_quantized`."""

    name: ClassVar[str] = "quantize"

    def __init__(
        self,
        precision: Precision,
        ranges: Mapping[str, float],
        *,
        exclude: Collection[str] = (),
        weights_only: bool = False,
    ) -> None:
        if not precision.quantized:
            raise SpecError(
                f"{precision.value} needs no quantization", why="int8 and fp8 do", do="use to_precision alone"
            )
        self.precision, self.ranges = precision, ranges
        self.exclude, self.weights_only = frozenset(exclude), weights_only

    def call(self, model: onnx_ir.Model) -> PassResult[QuantizeReport]:
        """Edits `model`. Raises SpecError (names, ranges that are missing), GraphError for an opset too old."""
        from onnx_ir.passes import common

        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        chosen, left = chosen_products(model.graph, exclude=self.exclude)
        report = QuantizeReport(precision=self.precision, weights_only=self.weights_only, left_out=left)
        if not chosen:
            return PassResult(model, False, report)
        raise_opset(model, FLOAT8_OPSET)
        writer = _Writer(model, self.precision)
        scales: dict[str, float] = {}
        for product in chosen:
            writer.weights(product)
            if not self.weights_only:
                name = product.activation.name or ""
                scales[name] = writer.activation(product, self._amax(name))
        common.RemoveUnusedNodesPass()(model)
        quantized = tuple(name_of(product.node) for product in chosen)
        return PassResult(model, True, msgspec.structs.replace(report, quantized=quantized, scales=scales))

    def _amax(self, name: str) -> float:
        if name not in self.ranges:
            raise SpecError(f"no range for the tensor {name}", why="it is to be quantized", do="calibrate it first")
        return self.ranges[name]


class _Writer:
    """Puts Q and DQ nodes in, one pair for each tensor of activations."""

    def __init__(self, model: onnx_ir.Model, precision: Precision) -> None:
        import onnx_ir as ir

        self._editor = Editor(model, Quantize.name)
        self._precision = precision
        self._kind = ir.DataType.INT8 if precision is Precision.INT8 else ir.DataType.FLOAT8E4M3FN
        self._done: dict[onnx_ir.Value, onnx_ir.Value] = {}

    def weights(self, product: Product) -> None:
        """One scale a channel; weights that several products share get a copy each."""
        assert product.weight.const_value is not None
        numbers, scales = quantized_weight(product.weight.const_value.numpy(), product.axis, self._precision)
        name = product.weight.name or "weight"
        stored = self._editor.constant(numbers, f"{name}/{self._precision.value}")
        factors = self._editor.constant(scales, f"{name}/scale")
        value = self._editor.node("DequantizeLinear", [stored, factors], before=product.node, axis=product.axis)
        self._typed(value, product.weight)
        slot = list(product.node.inputs).index(product.weight)
        product.node.replace_input_with(slot, value)

    def activation(self, product: Product, amax: float) -> float:
        """The scale. Q and DQ stand ahead of the first product that reads the tensor, and all of them share it."""
        import numpy as np

        source, scale = product.activation, scale_of(amax, self._precision)
        if source not in self._done:
            factor = self._editor.constant(np.array(scale, np.float32), f"{source.name}/scale")
            zero = self._editor.constant(np.zeros((), self._kind.numpy()), f"{source.name}/zero")
            q = self._editor.node("QuantizeLinear", [source, factor, zero], before=product.node)
            self._typed(q, source, kind=self._kind)
            dq = self._editor.node("DequantizeLinear", [q, factor, zero], before=product.node)
            self._typed(dq, source)
            self._done[source] = dq
        product.node.replace_input_with(0, self._done[source])
        return scale

    @staticmethod
    def _typed(value: onnx_ir.Value, like: onnx_ir.Value, *, kind: onnx_ir.DataType | None = None) -> None:
        import onnx_ir as ir

        value.shape = like.shape
        value.type = ir.TensorType(kind or ir.DataType.FLOAT)


def to_quantized(
    source: Path,
    target: Path,
    precision: Precision,
    ranges: Mapping[str, float],
    *,
    exclude: Collection[str] = (),
    weights_only: bool = False,
    external_over: int = EXTERNAL_OVER,
) -> QuantizeReport:
    """Write the fp32 graph at `source` to `target`, fp32 still, with Q/DQ around its products with weights.

    `precision` is INT8 or FP8. `ranges` has the largest magnitude that each tensor of `tensors_to_calibrate(source)`
    is to represent, by name (`Calibration.ranges` of trtship.calibrate). `exclude` are names of nodes (of the graph at
    `source`) that stay as they are; a product without a name goes by its first output's. `weights_only` leaves
    activations alone, and needs no ranges. The strongly typed graph is then
    `to_precision(target, typed, precision)`, which makes everything else fp16.

    The node and tensor names of `source` stay. Raises GraphError, SpecError (an unknown name, a range missing),
    OutputError.
    """
    one = Quantize(precision, ranges, exclude=exclude, weights_only=weights_only)
    return one.apply(source, target, external_over=external_over)
