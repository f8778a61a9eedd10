"""Which nodes of an fp32 graph compute in the low precision, and which stay in fp32.

The nodes that are named to be kept stay, and so do the heads (`trtship.passes.heads`): the product behind the pooling,
whose errors are the outputs' own. Then five rules, in the order of `_stays`:

1. What rounding would break stays (`trtship.graphs.positions`): positions, sines and steps with the chain that computes
   their arguments, coordinates, and floats that become integers or sizes.
2. Operators of `KEPT_IN_FP32`, and those whose ONNX definition has no low-precision form, stay.
3. What only moves values follows its input, unless everything downstream stays anyway.
4. Element by element arithmetic stays where a *statistic* takes part (a sum over a dimension and what is computed
   from it: the mean and deviation of a LayerNorm written out, the norm of F.normalize), where a constant does not fit
   the low precision (a mask of -1e9, an epsilon of 1e-12), where all it works on is fp32 already (the scale and shift
   after such a norm), and where it squares what is then summed.
5. Everything else is low: products, convolutions, activations, and residual sums.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from trtship.errors import SpecError
from trtship.graphs.operators import ELEMENTWISE, FP32_SLOTS, KEPT_IN_FP32, MOVES, REDUCTIONS
from trtship.graphs.positions import exact_nodes
from trtship.passes.constants import in_range, is_tiny
from trtship.passes.heads import heads
from trtship.passes.quantize_places import name_of

if TYPE_CHECKING:
    import onnx_ir

WIDENING = frozenset({"Add", "Sub", "Mul", "Sum", "Where"})
"""Pass a constant's size on to their result."""
COMPARING = frozenset({"Clip", "Max", "Min"})
STATISTIC_FUNCTIONS = frozenset({"Sqrt", "Reciprocal", "Pow", "Exp", "Log"})


def is_float(value: onnx_ir.Value | None) -> bool:
    """Whether its type is float32."""
    return value is not None and value.dtype is not None and value.dtype.name == "FLOAT"


def is_constant(value: onnx_ir.Value) -> bool:
    return value.is_initializer() and not value.is_graph_input()


class Assignment:
    """`full` holds the nodes that stay in fp32; the graph has inferred types and no Constant nodes or subgraphs.

    `keep` are nodes that stay whatever they are, by `name_of`; what only adds or scales their results stays with them,
    by rule 4. Raises SpecError for a name that no node has.
    """

    def __init__(self, model: onnx_ir.Model, low: onnx_ir.DataType, *, keep: Collection[str] = ()) -> None:
        self._low, self._keep = low, frozenset(keep)
        unknown = self._keep - {name_of(node) for node in model.graph}
        if unknown:
            raise SpecError(
                f"there is no node {min(unknown)!r} to keep in fp32",
                why="the graph has none of that name",
                do="check it",
            )
        self._opsets = model.opset_imports
        self.full: set[onnx_ir.Node] = set()
        self._statistics: set[onnx_ir.Value] = set()
        self._wide: set[onnx_ir.Value] = set()
        self._full_values: set[onnx_ir.Value] = set()
        nodes = [node for node in model.graph if any(map(is_float, (*node.inputs, *node.outputs)))]
        self._exact, self._heads = exact_nodes(model.graph), heads(model)
        for node in nodes:
            variable = [value for value in node.inputs if value is not None and is_float(value)]
            variable = [value for value in variable if not is_constant(value)]
            if self._stays(node, variable):
                self.full.add(node)
                self._full_values.update(node.outputs)
                self._mark(node, variable)

    def _stays(self, node: onnx_ir.Node, variable: list[onnx_ir.Value]) -> bool:
        op = node.op_type
        if name_of(node) in self._keep or node in self._heads:
            return True
        if node in self._exact or op in KEPT_IN_FP32 or not self._has_low_form(node):
            return True
        if op == "Cast":
            return not variable or variable[0] in self._full_values
        if op in MOVES:
            if any(value in self._wide for value in variable):
                return True
            if variable and all(value in self._statistics for value in variable):
                return True
            return any(value in self._full_values for value in variable) and all(map(_feeds_only_kept, node.outputs))
        if op in ELEMENTWISE:
            taking_part = any(value in self._statistics or value in self._wide for value in variable)
            all_full = bool(variable) and all(value in self._full_values for value in variable)
            return taking_part or all_full or self._has_unfit_constant(node) or _is_summed_square(node)
        return not variable and not any(map(is_float, node.inputs))

    def _mark(self, node: onnx_ir.Node, variable: list[onnx_ir.Value]) -> None:
        """Say of a node that stays whether its outputs are statistics, or may leave the low precision's range."""
        op = node.op_type
        carries = op in MOVES or op in ELEMENTWISE or op in STATISTIC_FUNCTIONS
        if op in REDUCTIONS or (carries and variable and all(value in self._statistics for value in variable)):
            self._statistics.update(node.outputs)
        is_widened = op in WIDENING and self._has_unfit_constant(node)
        if is_widened or (op in MOVES | WIDENING and any(value in self._wide for value in variable)):
            self._wide.update(node.outputs)

    def _has_unfit_constant(self, node: onnx_ir.Node) -> bool:
        """Clip, Max and Min only compare with a constant: one that is too large may be clipped for them."""
        tensors = [
            value.const_value
            for value in node.inputs
            if value is not None and is_float(value) and is_constant(value) and value.const_value is not None
        ]
        too_large = any(not in_range(tensor, self._low) for tensor in tensors)
        return any(is_tiny(tensor, self._low) for tensor in tensors) or (node.op_type not in COMPARING and too_large)

    def _has_low_form(self, node: onnx_ir.Node) -> bool:
        """Whether the operator's ONNX definition, at this opset, takes and gives the low type."""
        import onnx

        try:
            schema = onnx.defs.get_schema(node.op_type, self._opsets.get(node.domain, 1), node.domain)
        except onnx.defs.SchemaError:
            return False
        allowed = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
        wanted = f"tensor({self._low.name.lower()})"
        for values, formals in ((node.inputs, schema.inputs), (node.outputs[:1], schema.outputs)):
            for slot, value in enumerate(values):
                formal = formals[min(slot, len(formals) - 1)]
                is_data = is_float(value) and (node.op_type, slot) not in FP32_SLOTS and node.op_type != "Cast"
                if is_data and wanted not in allowed.get(formal.type_str, [formal.type_str]):
                    return False
        return True


def _feeds_only_kept(value: onnx_ir.Value) -> bool:
    users = value.consumers()
    return not value.is_graph_output() and all(
        user.op_type in KEPT_IN_FP32 or (user.op_type in MOVES and all(map(_feeds_only_kept, user.outputs)))
        for user in users
    )


def _is_summed_square(node: onnx_ir.Node) -> bool:
    users = node.outputs[0].consumers()
    is_square = node.op_type == "Mul" and node.inputs[0] is node.inputs[1]
    return is_square and bool(users) and all(user.op_type in REDUCTIONS for user in users)
