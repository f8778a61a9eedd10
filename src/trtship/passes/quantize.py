"""fp32 graph -> the same graph with QuantizeLinear and DequantizeLinear around its products with weights.

It stays fp32 otherwise: `to_precision` with the same precision then makes the rest fp16. Zero points are 0, as TensorRT
asks. A tensor of activations has one scale and one Q/DQ pair, which all products that read it share. Weights, stored in
int8 or fp8 (E4M3), have one scale for each output channel; but for products that share what they read (q, k and v of an
attention) they have one scale together: TensorRT multiplies these at once, and multiplies channels' scales in, or keeps
scales apart, in kernels of their own (benchmarks/notes.md).

A scale for each channel is DequantizeLinear's, or a Mul behind the product (`channels_behind`), which is the same
number. TensorRT for RTX 1.6 needs the latter: it moves a DequantizeLinear's channels behind the product by itself, and
hands over the sum of the integers as fp16, which holds no more than 65504, before anything has scaled it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import msgspec

from trtship.errors import SpecError
from trtship.graphs.storage import EXTERNAL_OVER
from trtship.passes.base import Pass, PassResult
from trtship.passes.opset import raise_opset
from trtship.passes.quantize_places import Product, Scope, chosen_products, name_of
from trtship.passes.quantize_scales import quantized_weight, relative_error, scale_of, split_scales, weight_scales
from trtship.passes.rewrite import Editor
from trtship.spec import Precision, Record

if TYPE_CHECKING:
    import onnx_ir

FLOAT8_OPSET = 19
"""The first in which QuantizeLinear makes float8e4m3fn."""


class QuantizedTensor(Record, frozen=True):
    """A tensor of activations: its `name`, its `scale`, and the name of the DequantizeLinear's `result`."""

    name: str
    scale: float
    result: str


class QuantizedProduct(Record, frozen=True):
    """A product: the `node`'s name, that of its `result`, the relative error (Frobenius) of its weights, and whether
    they have a scale for each channel."""

    node: str
    result: str
    weight_error: float
    per_channel: bool


class QuantizeReport(Record, frozen=True):
    """What the pass did: the `products` and `tensors` that it quantized, and the products it `left_out` with why, by
    node name. With nothing in `products`, the graph is as it was."""

    precision: Precision
    scope: Scope
    products: tuple[QuantizedProduct, ...] = ()
    tensors: tuple[QuantizedTensor, ...] = ()
    left_out: dict[str, str] = msgspec.field(default_factory=dict)

    @property
    def quantized(self) -> tuple[str, ...]:
        """Names of the products' nodes."""
        return tuple(product.node for product in self.products)


class Quantize(Pass[QuantizeReport]):
    """See the module and `to_quantized`."""

    name: ClassVar[str] = "quantize"

    def __init__(
        self,
        precision: Precision,
        ranges: Mapping[str, float],
        *,
        scope: Scope = "fused",
        exclude: Collection[str] = (),
        convolutions: bool = True,
        channels_behind: bool = False,
    ) -> None:
        if not precision.quantized:
            raise SpecError(
                f"{precision.value} needs no quantization", why="int8 and fp8 do", do="use to_precision alone"
            )
        self.precision, self.ranges, self.scope = precision, ranges, scope
        self.exclude, self.convolutions = frozenset(exclude), convolutions
        self.channels_behind = channels_behind and scope != "weights"

    def call(self, model: onnx_ir.Model) -> PassResult[QuantizeReport]:
        """Edits `model`. Raises SpecError (names, ranges that are missing), GraphError for an opset too old."""
        from onnx_ir.passes import common

        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        chosen, left = chosen_products(
            model.graph, self.precision, scope=self.scope, exclude=self.exclude, convolutions=self.convolutions
        )
        report = QuantizeReport(precision=self.precision, scope=self.scope, left_out=left)
        if not chosen:
            return PassResult(model, False, report)
        raise_opset(model, FLOAT8_OPSET)
        writer = _Writer(model, self.precision, channels_behind=self.channels_behind)
        groups: dict[onnx_ir.Value, list[Product]] = {}
        for product in chosen:
            groups.setdefault(product.activation, []).append(product)
        products: dict[onnx_ir.Node, QuantizedProduct] = {}
        tensors = []
        for activation, group in groups.items():
            products.update(writer.weights(group, joined=len(group) > 1 and self.scope != "weights"))
            if self.scope != "weights":
                tensors.append(writer.activation(activation, group, self._amax(activation.name or "")))
        common.RemoveUnusedNodesPass()(model)
        model.graph.sort()
        found = tuple(products[product.node] for product in chosen)
        return PassResult(model, True, msgspec.structs.replace(report, products=found, tensors=tuple(tensors)))

    def _amax(self, name: str) -> float:
        if name not in self.ranges:
            raise SpecError(f"no range for the tensor {name}", why="it is to be quantized", do="calibrate it first")
        return self.ranges[name]


class _Writer:
    """Puts Q and DQ nodes in."""

    def __init__(self, model: onnx_ir.Model, precision: Precision, *, channels_behind: bool) -> None:
        import onnx_ir as ir

        self._outputs, self._behind = model.graph.outputs, channels_behind
        self._editor = Editor(model, Quantize.name)
        self._precision = precision
        self._kind = ir.DataType.INT8 if precision is Precision.INT8 else ir.DataType.FLOAT8E4M3FN

    def weights(self, group: Sequence[Product], *, joined: bool) -> dict[onnx_ir.Node, QuantizedProduct]:
        """`joined`: one scale for all of them. Weights that several products use get a copy each."""
        import numpy as np

        numbers = {p.node: p.weight.const_value.numpy() for p in group if p.weight.const_value is not None}
        largest = np.array([np.abs(one).max(initial=0.0) for one in numbers.values()])
        found = {}
        for product in group:
            weight, axis = numbers[product.node], None if joined else product.axis
            if self._behind and _has_bias(product.node):
                axis = None
            behind = self._behind and axis is not None and product.node.op_type != "Conv"
            scales = weight_scales(largest if joined else weight, axis, self._precision)
            if behind:
                whole, shares = split_scales(scales)
                scales = whole * shares
            stored = quantized_weight(weight, scales, axis, self._precision)
            name = product.weight.name or "weight"
            inputs = [self._editor.constant(stored, f"{name}/{self._precision.value}")]
            inputs.append(self._editor.constant(whole if behind else scales, f"{name}/scale"))
            attributes = {} if axis is None or behind else {"axis": axis}
            value = self._editor.node("DequantizeLinear", inputs, before=product.node, **attributes)
            _typed(value, product.weight)
            product.node.replace_input_with(list(product.node.inputs).index(product.weight, 1), value)
            result = product.node.outputs[0].name or ""
            found[product.node] = QuantizedProduct(
                node=name_of(product.node),
                result=result,
                weight_error=relative_error(weight, stored, scales, axis),
                per_channel=axis is not None,
            )
            if behind:
                self._multiply(product.node, self._editor.constant(shares, f"{name}/shares"))
        return found

    def _multiply(self, node: onnx_ir.Node, shares: onnx_ir.Value) -> None:
        """The node's result by `shares`, which takes its name and its place; the node goes by the same name as ever."""
        node.name = name_of(node)
        before = node.outputs[0]
        uses = list(before.uses())
        after = self._editor.node("Mul", [before, shares], before=node)  # the graph is sorted at the end
        after.type, after.shape = before.type, before.shape
        for user, slot in uses:
            user.replace_input_with(slot, after)
        for index, output in enumerate(self._outputs):
            if output is before:
                self._outputs[index] = after
        name, before.name = before.name, after.name
        after.name = name

    def activation(self, source: onnx_ir.Value, group: Sequence[Product], amax: float) -> QuantizedTensor:
        """One pair, ahead of the first product that reads it."""
        import numpy as np

        scale, first = scale_of(amax, self._precision), group[0].node
        factor = self._editor.constant(np.array(scale, np.float32), f"{source.name}/scale")
        zero = self._editor.constant(np.zeros((), self._kind.numpy()), f"{source.name}/zero")
        low = self._editor.node("QuantizeLinear", [source, factor, zero], before=first)
        _typed(low, source, kind=self._kind)
        result = self._editor.node("DequantizeLinear", [low, factor, zero], before=first)
        _typed(result, source)
        for product in group:
            product.node.replace_input_with(0, result)
        return QuantizedTensor(name=source.name or "", scale=scale, result=result.name or "")


def _has_bias(node: onnx_ir.Node) -> bool:
    return node.op_type == "Gemm" and len(node.inputs) > 2 and node.inputs[2] is not None


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
    scope: Scope = "fused",
    exclude: Collection[str] = (),
    convolutions: bool = True,
    channels_behind: bool = False,
    external_over: int = EXTERNAL_OVER,
) -> QuantizeReport:
    """Write the fp32 graph at `source` to `target`, fp32 still, with Q/DQ around its products with weights.

    `precision` is INT8 or FP8. `ranges` has the largest magnitude that each tensor of `tensors_to_calibrate(source)`
    is to represent, by name (`Calibration.ranges` of trtship.calibrate). `scope` says which products
    (`trtship.passes.quantize_places`); `weights` leaves activations alone, and needs no ranges. `exclude` are names of
    nodes (of the graph at `source`) that stay as they are; a product without a name goes by its first output's.
    `convolutions` is False for a family without convolutions in this precision; `channels_behind` is True for one that
    must not be given a scale for each channel with the weights (a Gemm with a bias has one scale then, a convolution
    keeps its own). The strongly typed graph is then `to_precision(target, typed, precision)`, which makes everything
    else fp16.

    The node and tensor names of `source` stay. Raises GraphError, SpecError (an unknown name, a range missing),
    OutputError.
    """
    one = Quantize(
        precision, ranges, scope=scope, exclude=exclude, convolutions=convolutions, channels_behind=channels_behind
    )
    return one.apply(source, target, external_over=external_over)
