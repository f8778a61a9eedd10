"""Small edits of a graph: what the defects and the correct variants are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

Node, Value, Model = ir.Node, ir.Value, ir.Model


def find(model: Model, op: str, where: Callable[[Node], bool] = lambda node: True, *, index: int = 0) -> Node:
    """The `index`-th node of this operator."""
    return [node for node in model.graph if node.op_type == op and where(node)][index]


def data(value: Value | None) -> Any:
    """A constant's numbers, float32 where they are floats."""
    assert value is not None
    assert value.const_value is not None
    array = value.const_value.numpy()
    return array.astype(np.float32) if array.dtype.kind not in "iub" else array


def is_constant(value: Value | None) -> bool:
    return value is not None and value.const_value is not None


def constant(model: Model, array: Any, like: Value | None = None) -> Value:
    """A new initializer, in the type of `like`."""
    kind = ir.DataType.from_numpy(array.dtype) if like is None else like.dtype
    assert kind is not None
    count = len(model.graph.initializers)
    name = f"planted_{count}"
    tensor = ir.Tensor(array.astype(kind.numpy()), dtype=kind, name=name)
    value = Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(kind), const_value=tensor)
    model.graph.register_initializer(value)
    return value


def change(model: Model, node: Node, slot: int, edit: Callable[[Any], Any]) -> Node:
    """Give this node a constant of its own, edited."""
    old = node.inputs[slot]
    node.replace_input_with(slot, constant(model, np.ascontiguousarray(edit(data(old))), old))
    return node


def attribute(node: Node, **values: Any) -> Node:
    for name, value in values.items():
        node.attributes[name] = _attribute(name, value)
    return node


def _attribute(name: str, value: Any) -> ir.Attr:
    if isinstance(value, str):
        return ir.AttrString(name, value)
    if isinstance(value, float):
        return ir.AttrFloat32(name, value)
    return ir.AttrInt64(name, value) if isinstance(value, int) else ir.AttrInt64s(name, list(value))


class Splice:
    """New nodes between the node that makes `value` and all who read it; the last of them takes over its name."""

    def __init__(self, model: Model, value: Value) -> None:
        self.model, self.old = model, value
        self._after = value.producer()
        self._users = [(use.node, use.idx) for use in value.uses()]
        self._names: list[str] = []
        assert self._after is not None

    def node(self, op: str, *inputs: Value, dtype: ir.DataType | None = None, **attributes: Any) -> Value:
        """A node with one output, of its first input's type."""
        assert self._after is not None
        name = f"planted/{op}_{len(self.model.graph)}"
        kind = dtype or inputs[0].dtype
        assert kind is not None
        output = Value(name=name, type=ir.TensorType(kind))
        made = ir.node(op, list(inputs), attributes=attributes, outputs=[output], name=name)
        self.model.graph.insert_after(self._after, made)
        self._after = made
        self._names.append(name)
        return output

    def number(self, value: float | Sequence[int]) -> Value:
        if isinstance(value, float):
            return constant(self.model, np.array(value, np.float32), self.old)
        return constant(self.model, np.array(value, np.int64))

    def end(self, new: Value) -> tuple[str, ...]:
        """Everybody reads `new` now. Returns the names of the nodes that were put in."""
        old, graph = self.old, self.model.graph
        new.shape = old.shape
        for node, slot in self._users:
            node.replace_input_with(slot, new)
        for index, output in enumerate(graph.outputs):
            if output is old:
                graph.outputs[index] = new
        old.name, new.name = f"{old.name}/before", old.name
        return tuple(self._names)


def attention_adds(model: Model) -> list[Node]:
    """Where each attention block adds its position bias, and its mask, to its scores: a constant [1, windows * heads,
    tokens, tokens]."""
    return [
        node
        for node in model.graph
        if node.op_type == "Add" and any(is_constant(v) and data(v).ndim == 4 for v in node.inputs)
    ]


def constant_slot(node: Node) -> int:
    return next(slot for slot, value in enumerate(node.inputs) if is_constant(value))


def inside(node: Node) -> Value:
    """A node's one result."""
    return node.outputs[0]


def maker(value: Value | None) -> Node:
    assert value is not None
    node = value.producer()
    assert node is not None
    return node


def residual_sums(model: Model) -> list[Node]:
    """Sums of two tensors that are no constants."""
    return [n for n in model.graph if n.op_type == "Add" and not any(map(is_constant, n.inputs))]


def norms(model: Model) -> list[Node]:
    return [node for node in model.graph if node.op_type == "LayerNormalization"]


def layers(model: Model) -> list[Node]:
    """Products with a weight."""
    return [node for node in model.graph if node.op_type == "MatMul" and is_constant(node.inputs[1])]
