"""Carry out an assignment of types: constants converted, casts inserted where two types meet, each once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtship.graphs.operators import FP32_SLOTS, FP32_STATISTICS
from trtship.passes.assign import is_constant, is_float
from trtship.passes.constants import convert
from trtship.spec import Record

if TYPE_CHECKING:
    import onnx_ir


class Clipped(Record, frozen=True):
    """A constant of which `count` finite elements were beyond the type's range, and are now its largest number."""

    name: str
    count: int


class Retyping:
    """Edits the graph of `model`: nodes in `full` compute in fp32, the others with fp32 tensors in `low`."""

    def __init__(self, model: onnx_ir.Model, low: onnx_ir.DataType, full: set[onnx_ir.Node], *, low_io: bool) -> None:
        import onnx_ir as ir

        self._graph, self._low, self._full, self._low_io = model.graph, low, full, low_io
        self._float = ir.DataType.FLOAT
        self._floats: set[onnx_ir.Value] = set()
        self._cast: dict[tuple[onnx_ir.Value, onnx_ir.DataType], onnx_ir.Value] = {}
        self._constant: dict[onnx_ir.Value, onnx_ir.Value] = {}
        self._names = {value.name for node in model.graph for value in node.outputs}
        self._names |= set(model.graph.initializers) | {value.name for value in model.graph.inputs}
        self.casts = self.constants = self.underflowed = 0
        self.clipped: list[Clipped] = []

    def run(self) -> None:
        nodes = list(self._graph)
        self._floats.update(value for value in self._graph.inputs if is_float(value))
        self._floats.update(value for value in self._graph.initializers.values() if is_float(value))
        self._floats.update(value for node in nodes for value in node.outputs if is_float(value))
        if self._low_io:
            for value in self._graph.inputs:
                if value in self._floats and not value.is_initializer():
                    value.dtype = self._low
        for node in nodes:
            self._type_outputs(node)
        for node in nodes:
            self._type_inputs(node)
        self._type_graph_outputs()
        self._drop_unused_constants()

    def _type_outputs(self, node: onnx_ir.Node) -> None:
        import onnx_ir as ir

        if node in self._full:
            return
        outputs = node.outputs[:1] if node.op_type in FP32_STATISTICS else node.outputs
        for value in outputs:
            if value in self._floats:
                value.dtype = self._low
                if node.op_type == "Cast":
                    node.attributes["to"] = ir.AttrInt64("to", int(self._low))

    def _type_inputs(self, node: onnx_ir.Node) -> None:
        for slot, value in enumerate(node.inputs):
            if value is None or value not in self._floats or node.op_type == "Cast":
                continue
            stays = node in self._full or (node.op_type, slot) in FP32_SLOTS
            node.replace_input_with(slot, self._as(value, self._float if stays else self._low))

    def _as(self, value: onnx_ir.Value, dtype: onnx_ir.DataType) -> onnx_ir.Value:
        if value.dtype == dtype:
            return value
        if is_constant(value):
            if value not in self._constant:
                self._constant[value] = self._converted(value)
            return self._constant[value]
        if (value, dtype) not in self._cast:
            self._cast[value, dtype] = self._insert_cast(value, dtype, self._fresh(value, dtype))
        return self._cast[value, dtype]

    def _converted(self, value: onnx_ir.Value) -> onnx_ir.Value:
        import onnx_ir as ir

        assert value.const_value is not None
        result = convert(value.const_value, self._low)
        self.constants += 1
        self.underflowed += result.underflowed
        if result.clipped:
            self.clipped.append(Clipped(name=value.name or "", count=result.clipped))
        name = self._fresh(value, self._low)
        tensor = ir.Tensor(result.numbers, dtype=self._low, name=name)
        new = ir.Value(name=name, shape=value.shape, type=ir.TensorType(self._low), const_value=tensor)
        self._graph.register_initializer(new)
        return new

    def _insert_cast(self, value: onnx_ir.Value, dtype: onnx_ir.DataType, name: str) -> onnx_ir.Value:
        import onnx_ir as ir

        output = ir.Value(name=name, shape=value.shape, type=ir.TensorType(dtype))
        cast = ir.Node("", "Cast", [value], [ir.AttrInt64("to", int(dtype))], outputs=[output], name=f"cast_{name}")
        cast.metadata_props["trtship.pass"] = "precision"
        producer = value.producer()
        if producer is not None:
            self._graph.insert_after(producer, cast)
        elif len(self._graph):
            self._graph.insert_before(self._graph[0], cast)
        else:
            self._graph.append(cast)
        self.casts += 1
        return output

    def _type_graph_outputs(self) -> None:
        wanted = self._low if self._low_io else self._float
        for index, value in enumerate(self._graph.outputs):
            if value not in self._floats or value.dtype == wanted:
                continue
            name = value.name or ""
            value.name = self._fresh(value, value.dtype or self._low)
            self._graph.outputs[index] = self._insert_cast(value, wanted, name)

    def _drop_unused_constants(self) -> None:
        """Where only the converted constant is used, it takes the original's name."""
        for old, new in self._constant.items():
            if not old.uses() and not old.is_graph_output() and old.name is not None:
                name = old.name
                del self._graph.initializers[name]
                del self._graph.initializers[new.name or ""]
                new.name = name
                self._graph.register_initializer(new)

    def _fresh(self, value: onnx_ir.Value, dtype: onnx_ir.DataType) -> str:
        base = f"{value.name}_{dtype.name.lower() if dtype.name != 'FLOAT' else 'float32'}"
        name, count = base, 2
        while name in self._names:
            name, count = f"{base}_{count}", count + 1
        self._names.add(name)
        return name
