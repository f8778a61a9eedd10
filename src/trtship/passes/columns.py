"""Which columns of a linear layer's product end up in a tensor, told by sending their numbers along the same way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trtship.passes.known import Known

if TYPE_CHECKING:
    import onnx_ir

MOVEMENTS = frozenset(
    {"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Gather", "Split", "Slice", "Identity", "Flatten"}
)


@dataclass(frozen=True)
class Linear:
    """`product` is a MatMul with a constant weight [K, N]; `biases` the Adds of a constant [N'] on the way from it.

    `columns` holds, for every value on the way and for every element of it, its column in the product, 0 ... N-1.
    """

    product: onnx_ir.Node
    biases: tuple[onnx_ir.Node, ...]
    columns: dict[onnx_ir.Value, Any]


def linear_behind(value: onnx_ir.Value, known: Known) -> Linear | None:
    """The linear layer of which `value` holds elements, moved about; None where anything else is on the way."""
    import numpy as np

    way: list[onnx_ir.Node] = []
    node = value.producer()
    while node is not None and node.op_type in MOVEMENTS | {"Add"}:
        way.append(node)
        source = moved_input(node, known)
        node = source.producer() if source is not None else None
    if node is None or node.op_type != "MatMul" or (weight := known.data(node.inputs[1])) is None or weight.ndim != 2:
        return None
    shape = known.shape(node.outputs[0])
    if shape is None:
        return None
    columns = {node.outputs[0]: np.broadcast_to(np.arange(weight.shape[1], dtype=np.int32), shape)}
    for step in reversed(way):
        source = moved_input(step, known)
        assert source is not None
        if step.op_type == "Add":
            columns[step.outputs[0]] = columns[source]
        else:
            columns.update(known.moved(step, columns[source]))
    if value not in columns:
        return None
    return Linear(node, tuple(step for step in way if step.op_type == "Add"), columns)


def moved_input(node: onnx_ir.Node, known: Known) -> onnx_ir.Value | None:
    """The data that a movement moves, or to which an Add adds a constant of one dimension."""
    if node.op_type != "Add":
        return node.inputs[0]
    slot = bias_slot(node, known)
    return None if slot is None else node.inputs[1 - slot]


def bias_slot(add: onnx_ir.Node, known: Known) -> int | None:
    """Which operand is a constant of one dimension, where the other is none."""
    for slot in (0, 1):
        array = known.data(add.inputs[slot])
        if array is not None and array.ndim == 1 and known.data(add.inputs[1 - slot]) is None:
            return slot
    return None


def used_elsewhere(linear: Linear, value: onnx_ir.Value, known: Known) -> bool:
    """Whether any column of `value` reaches something beside `value`, whose own users are not looked at."""
    import numpy as np

    start = linear.product.outputs[0]
    wanted = np.zeros(linear.columns[start].shape[-1], bool)
    wanted[linear.columns[value]] = True

    def escapes(source: onnx_ir.Value, columns: Any) -> bool:
        if source is value or not wanted[columns].any():
            return False
        return source.is_graph_output() or any(leaks(user, source, columns) for user in source.consumers())

    def leaks(user: onnx_ir.Node, source: onnx_ir.Value, columns: Any) -> bool:
        if user.op_type == "Shape":
            return False
        if user in linear.biases:
            return escapes(user.outputs[0], columns)
        is_moved = user.op_type in MOVEMENTS and user.inputs[0] is source
        found = known.moved(user, columns) if is_moved else {}
        return len(found) != len(user.outputs) or any(escapes(*item) for item in found.items())

    return escapes(start, linear.columns[start])
