"""Values of a graph that rounding would break: positions, and what sines, steps, coordinates and sizes are made of.

A *position* is a float that is computed from integers and constants alone: a token's place, a denoiser's step, a
pixel's column. Its digits are those of a whole number. What an operator of `trtship.graphs.slots` needs exactly is
found by walking back from it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from trtship.graphs.operators import ELEMENTWISE, FUNCTIONS, MOVES, PRODUCTS, REDUCTIONS
from trtship.graphs.slots import ANGLES, COMPARISONS, COORDINATES, STEPS, is_exact, is_size

if TYPE_CHECKING:
    import onnx_ir

Needs = Callable[["onnx_ir.Node", int], bool]
"""Whether a node needs its input at this slot exactly."""
ARITHMETIC = ELEMENTWISE | MOVES | FUNCTIONS | REDUCTIONS | ANGLES | STEPS | {"Cast", "CumSum", "Range"}
"""Operators that an exact result needs exact inputs for."""
UNTOUCHED = frozenset({"QuantizeLinear", "DequantizeLinear"})
"""Quantized tensors have the precision that their calibration gave them."""


def positions(graph: onnx_ir.Graph) -> set[onnx_ir.Value]:
    """Return the float values that are computed from integers that are not constant, and from constants.

    A row of a table that an integer selects is not one: it is a weight. `graph` has inferred types.
    """
    found: set[onnx_ir.Value] = set()
    for node in graph:
        op = node.op_type
        data = [v for slot, v in enumerate(node.inputs) if v is not None and not is_size(op, slot)]
        variable = [v for v in data if not _is_constant(v)]
        floats = [v for v in variable if _is_float(v)]
        from_integers = op == "Range" or (op == "Cast" and any(map(_is_integer, variable)))
        from_positions = op in ARITHMETIC and bool(floats) and all(v in found for v in floats)
        if from_integers or from_positions:
            found.update(filter(_is_float, node.outputs))
    return found


def exact_nodes(graph: onnx_ir.Graph) -> set[onnx_ir.Node]:
    """Return the nodes that make, or are, what rounding to a low precision would break; `graph` has inferred types.

    1. Sines, other functions of `ANGLES`, and steps; what samples a picture at coordinates says its own type.
    2. What computes their arguments, coordinates, float sizes, and floats that become integers, back to integers,
       constants and inputs of the graph, or to the nearest activation: the product, or the sum of two activations,
       that the argument comes from. That one makes its result in fp32, and reads what it reads.
    3. What computes a position.
    """
    known = positions(graph)
    asking = walk_back(graph, lambda node, slot: _needs(node, slot) or node.op_type in ANGLES, known)
    making = {node for value in known if (node := value.producer()) is not None}
    return asking | making | {node for node in graph if node.op_type in ANGLES | STEPS}


def stepwise_nodes(graph: onnx_ir.Graph) -> set[onnx_ir.Node]:
    """Return the nodes that compute positions of which indices, sizes, steps and comparisons are made.

    Such numbers are whole or nearly so, and computed alike everywhere: an error, however small, makes another index
    of them. `graph` has inferred types.
    """
    known = positions(graph)
    found = walk_back(graph, lambda node, slot: _needs(node, slot) or node.op_type in COMPARISONS, known)
    return {node for node in found if any(value in known for value in node.outputs)}


def walk_back(graph: onnx_ir.Graph, needs: Needs, known: set[onnx_ir.Value]) -> set[onnx_ir.Node]:
    """Return the nodes that compute what `needs` asks for; `known` are the graph's positions."""
    wanted: set[onnx_ir.Value] = set()
    found: set[onnx_ir.Node] = set()
    for node in reversed(graph):
        makes = any(value in wanted for value in node.outputs) and node.op_type not in UNTOUCHED
        if makes:
            found.add(node)
        through = _passed_on(node, known) if makes else []
        for slot, value in enumerate(node.inputs):
            if value is not None and _is_float(value) and (value in through or needs(node, slot)):
                wanted.add(value)
    return found


def _passed_on(node: onnx_ir.Node, known: set[onnx_ir.Value]) -> list[onnx_ir.Value]:
    """Of a node whose result is needed exactly: the inputs that are, then.

    The products and sums that join activations are where the walk ends: it would go on through the whole network.
    """
    op = node.op_type
    if op not in ARITHMETIC | PRODUCTS:
        return []
    floats = [v for slot, v in enumerate(node.inputs) if v is not None and not is_size(op, slot) and _is_float(v)]
    activations = {v for v in floats if v not in known and not _is_constant(v)}
    joins = op in PRODUCTS or (len(activations) > 1 and op not in MOVES)
    return [v for v in floats if not (joins and v in activations)]


def _needs(node: onnx_ir.Node, slot: int) -> bool:
    op = node.op_type
    if op == "Cast":
        return _is_integer(node.outputs[0])
    return op in STEPS or is_exact(op, slot) or slot in COORDINATES.get(op, ()) or (op == "Pow" and slot == 1)


def _is_float(value: onnx_ir.Value | None) -> bool:
    return value is not None and value.dtype is not None and value.dtype.name == "FLOAT"


def _is_integer(value: onnx_ir.Value) -> bool:
    return value.dtype is not None and value.dtype.is_integer()


def _is_constant(value: onnx_ir.Value) -> bool:
    return value.is_initializer() and not value.is_graph_input()
