"""Which of a few nodes made a tensor wrong, where the reference has nothing to compare in between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from trtship.session.base import Array
from trtship.verify.locate_graph import Lineage
from trtship.verify.locate_runs import FAILURES, GraphRuns, Suspect

if TYPE_CHECKING:
    import onnx_ir

SMALLEST = 2.0**-24
"""Of fp16: a constant below it may have become 0."""


def blamed(
    nodes: Sequence[onnx_ir.Node], suspect: Suspect, feeds: Mapping[str, Array], *, ours: Lineage, theirs: Lineage
) -> onnx_ir.Node:
    """The first node that does not run, or that makes NaN or Inf, of `nodes` (first to last, what they read is right);
    else the last that is no copy of the reference's; else the last. Casts are blamed only where there is nothing else.
    What a suspect that changes by being looked at does inside, its graph is asked for, as it is written.
    """
    if len(nodes) == 1:
        return nodes[0]
    written = GraphRuns(suspect.model, suspect.precision) if suspect.changes else suspect
    broken = next((node for node in nodes if _breaks(node, written, feeds)), None)
    if broken is not None:
        return broken
    others = [node for node in nodes if node.op_type != "Cast"] or list(nodes)
    u = suspect.precision.unit_roundoff
    changed = [node for node in others if not _is_copy(node, ours=ours, theirs=theirs, u=u)]
    return (changed or others)[-1]


def _breaks(node: onnx_ir.Node, suspect: Suspect, feeds: Mapping[str, Array]) -> bool:
    names = [value.name or "" for value in node.outputs if value.name]
    try:
        values = suspect.keep(names, feeds).values
    except FAILURES:
        return True
    return any(array.dtype.kind == "f" and not np.isfinite(array).all() for array in values.values())


def _is_copy(node: onnx_ir.Node, *, ours: Lineage, theirs: Lineage, u: float) -> bool:
    """Whether the reference has the same operator on the same tensors and constants."""
    name = ours.name_in(theirs, node.outputs[0].name or "")
    other = theirs.makers[name] if name is not None else None
    if other is None or other.op_type != node.op_type or len(other.inputs) != len(node.inputs):
        return False
    if _attributes(node) != _attributes(other):
        return False
    return all(_is_same(a, b, ours, theirs, u) for a, b in zip(node.inputs, other.inputs, strict=True))


def _attributes(node: onnx_ir.Node) -> dict[str, Any]:
    return {name: one.value for name, one in node.attributes.items() if name != "stash_type"}


def _is_same(a: onnx_ir.Value | None, b: onnx_ir.Value | None, ours: Lineage, theirs: Lineage, u: float) -> bool:
    if a is None or b is None:
        return a is b
    if a.const_value is None or b.const_value is None:
        # a tensor that the reference has not is made by one of the nodes in question, which then is no copy itself
        found = ours.name_in(theirs, a.name or "") if a.producer() is not None else None
        return a.const_value is None and b.const_value is None and found in (None, b.name)
    if a.shape != b.shape:
        return False
    mine, other = (one.numpy().astype(np.float64) for one in (a.const_value, b.const_value))
    return bool((np.abs(mine - other) <= u * np.abs(other) + SMALLEST).all())
