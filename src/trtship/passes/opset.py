"""Raise a graph's opset where that only widens what its operators accept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trtship.errors import GraphError

if TYPE_CHECKING:
    import onnx_ir

IR_VERSION = {19: 9, 22: 10}


def raise_opset(model: onnx_ir.Model, wanted: int) -> bool:
    """Declare the default domain's opset to be at least `wanted`, in place; whether that changed anything.

    An operator's newer definition may have more types, more optional inputs and more attributes with defaults. A
    graph with an operator that changed in any other way raises GraphError.
    """
    import onnx

    current = model.opset_imports.get("", 1)
    if current >= wanted:
        return False
    for node in model.graph.all_nodes():
        if node.domain not in ("", "ai.onnx"):
            continue
        try:
            old, new = (onnx.defs.get_schema(node.op_type, opset) for opset in (current, wanted))
        except onnx.defs.SchemaError as error:
            raise GraphError(
                f"the graph has an unknown operator {node.op_type} (node {node.name})",
                why=f"opset {wanted} has none of that name",
                do="export it again, or use --precision fp32",
            ) from error
        if old.since_version != new.since_version and not _only_widens(old, new):
            raise GraphError(
                f"the graph's opset {current} is too old for this precision",
                why=f"{node.op_type} (node {node.name}) changed its meaning before opset {wanted}, which is needed",
                do=f"export with --opset {wanted}",
            )
    model.opset_imports[""] = wanted
    model.ir_version = max(model.ir_version, IR_VERSION[wanted])
    return True


def _only_widens(old: Any, new: Any) -> bool:
    import onnx

    optional = onnx.defs.OpSchema.FormalParameterOption.Optional
    same_inputs = [i.name for i in old.inputs] == [i.name for i in new.inputs[: len(old.inputs)]]
    added = new.inputs[len(old.inputs) :]
    kept = set(old.attributes) <= set(new.attributes)
    needed = [name for name, a in new.attributes.items() if a.required and name not in old.attributes]
    return same_inputs and all(i.option == optional for i in added) and kept and not needed
