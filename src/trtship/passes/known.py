"""What is known of a graph once its dynamic sizes are numbers: every shape, and whatever does not depend on data.

Exporters leave shapes behind as arithmetic (`Shape`, `Gather`, `Concat` ...) that symbolic shape inference gives up
on. With numbers in place of letters there is nothing symbolic: one sweep in the order of the nodes settles it all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trtship.needs import need

if TYPE_CHECKING:
    import onnx_ir

Numbers = Any
"""A numpy array."""
SMALL, FEW = 4096, 16
"""Elements up to which integers, and floats, are worked out on the way: shapes and scales are no longer."""


class Known:
    """`model` at `sizes`, letter -> number. It is read once: values that are added to the graph later are not known."""

    def __init__(self, model: onnx_ir.Model, sizes: Mapping[str, int]) -> None:
        onnx = need("onnx", purpose="inferring shapes")
        self._opsets = dict(model.opset_imports)
        self._onnx = onnx
        self._reference = need("onnx.reference", purpose="working out shapes")
        self._types: dict[onnx_ir.Value, Any] = {}
        self._data: dict[onnx_ir.Value, Numbers | None] = {}
        for value in (*model.graph.inputs, *model.graph.initializers.values()):
            if value.dtype is None or value.shape is None:
                continue
            shape = [sizes.get(str(size.value)) if not isinstance(size, int) else size for size in value.shape]
            self._types[value] = onnx.helper.make_tensor_type_proto(int(value.dtype), shape)
        for node in model.graph:
            self._visit(node)

    def shape(self, value: onnx_ir.Value | None) -> tuple[int, ...] | None:
        """None where it depends on data, or on an operator without shape inference."""
        dims = self._dims(value)
        return None if dims is None or None in dims else tuple(dim for dim in dims if dim is not None)

    def dtype(self, value: onnx_ir.Value) -> Any:
        """numpy's; None where it is unknown."""
        kind = self._types.get(value)
        return None if kind is None else self._onnx.helper.tensor_dtype_to_np_dtype(kind.tensor_type.elem_type)

    def data(self, value: onnx_ir.Value | None) -> Numbers | None:
        """The tensor's elements, where they do not depend on the graph's inputs; None where they do."""
        if value is None:
            return None
        if value.const_value is not None and not value.is_graph_input():
            return value.const_value.numpy()
        node = value.producer()
        if value not in self._data and node is not None:
            self._settle(node)
        return self._data.get(value)

    def moved(self, node: onnx_ir.Node, array: Numbers) -> dict[onnx_ir.Value, Numbers]:
        """The outputs of `node` with `array` in place of its first input; none where they cannot be worked out."""
        rest = [self.data(value) for value in node.inputs[1:] if value is not None]
        return {} if any(one is None for one in rest) else self.outputs(node, [array, *rest])

    def outputs(self, node: onnx_ir.Node, arrays: list[Numbers]) -> dict[onnx_ir.Value, Numbers]:
        """The outputs of `node` for `arrays` as its inputs, those left out left out; none where it cannot be run."""
        import onnx_ir as ir

        names = [value.name for value in node.inputs if value is not None]
        try:
            evaluator = self._reference.ReferenceEvaluator(ir.serde.serialize_node(node), opsets=self._opsets)
            found = evaluator.run(None, dict(zip(names, arrays, strict=True)))
            return dict(zip(node.outputs, found, strict=False))
        except Exception:  # the reference lacks the operator, or it fails: not known, which is always safe
            return {}

    def _dims(self, value: onnx_ir.Value | None) -> list[int | None] | None:
        kind = self._types.get(value) if value is not None else None
        if kind is None or not kind.tensor_type.HasField("shape"):
            return None
        return [dim.dim_value if dim.HasField("dim_value") else None for dim in kind.tensor_type.shape.dim]

    def _visit(self, node: onnx_ir.Node) -> None:
        """Types of the node's outputs, and their elements where they are few integers (that is, shape arithmetic)."""
        import onnx_ir as ir

        proto = ir.serde.serialize_node(node)
        known = {value.name: self._types[value] for value in node.inputs if value is not None and value in self._types}
        data = {}
        for value in node.inputs:
            if value is not None and self._is_small(value) and (array := self.data(value)) is not None:
                data[value.name] = self._onnx.numpy_helper.from_array(array, value.name)
        try:
            schema = self._onnx.defs.get_schema(node.op_type, self._opsets.get(node.domain, 1), node.domain)
            imports = [self._onnx.helper.make_opsetid(domain, version) for domain, version in self._opsets.items()]
            found = self._onnx.shape_inference.infer_node_outputs(schema, proto, known, data, opset_imports=imports)
        except Exception:  # an operator without a definition, or inputs of unknown type: its outputs stay unknown
            return
        self._types.update({value: found[value.name] for value in node.outputs if value.name in found})

    def _is_small(self, value: onnx_ir.Value) -> bool:
        shape = self.shape(value)
        return shape is not None and math.prod(shape) <= (FEW if self.dtype(value).kind == "f" else SMALL)

    def _settle(self, node: onnx_ir.Node) -> None:
        """The elements of its outputs, those before it first: graphs are deeper than Python's stack."""
        stack = [node]
        while stack:
            before = self._awaited(stack[-1])
            if before is not None:
                stack.append(before)
                continue
            done = stack.pop()
            self._data.update(dict.fromkeys(done.outputs))
            self._data.update(self._evaluated(done))

    def _awaited(self, node: onnx_ir.Node) -> onnx_ir.Node | None:
        """The producer of the first input that must be settled before it; None where all are, or one depends
        on data."""
        if node.op_type == "Shape":
            return None
        for value in node.inputs:
            if value is None or (value.const_value is not None and not value.is_graph_input()):
                continue
            if value not in self._data:
                return value.producer()
            if self._data[value] is None:
                return None
        return None

    def _evaluated(self, node: onnx_ir.Node) -> dict[onnx_ir.Value, Numbers]:
        import numpy as np

        if node.op_type == "Shape":
            start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", None)
            dims = (self._dims(node.inputs[0]) or [None])[start:end]
            return {} if None in dims else {node.outputs[0]: np.array(dims, np.int64)}
        if "Random" in node.op_type or any(value is not None and self.data(value) is None for value in node.inputs):
            return {}
        return self.outputs(node, [self.data(value) for value in node.inputs if value is not None])
