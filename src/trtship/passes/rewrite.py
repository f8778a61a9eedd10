"""Passes that replace one form of subgraph by another: pattern, check, rewrite.

`pattern` names the nodes where the form may stand, `check` says what it found there or why it will not do, `rewrite`
replaces it. A check that fails close to the goal is a *near miss*: the node and the reason go into the report.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from trtship.passes.base import Pass, PassResult
from trtship.passes.batches import Batches
from trtship.passes.proof import Reference, Verdict
from trtship.spec import Record

if TYPE_CHECKING:
    import onnx_ir

Found = TypeVar("Found")
PASS_KEY, SOURCE_KEY = "trtship.pass", "pkg.torch.onnx.stack_trace"
VALUE_KEY = "trtship.value"
"""On a node that was put in: the name of the value whose place its result took, so that both can be compared."""


class NearMiss(Record, frozen=True):
    """A place where the pattern stood and the check said no: the `node` (name and operator) and the `reason`."""

    node: str
    reason: str


class RewriteReport(Record, frozen=True):
    """`matches` are the places where the pattern stood, `rewritten` those that passed the check."""

    matches: int
    rewritten: int
    near_misses: tuple[NearMiss, ...]
    nodes_before: int
    nodes_after: int


class Miss(Exception):
    """Raised inside a check, at the node that spoils it."""

    def __init__(self, node: onnx_ir.Node, reason: str) -> None:
        super().__init__(reason)
        self.near_miss = NearMiss(node=in_words(node), reason=reason)


class Rewrite(Pass[RewriteReport], Generic[Found]):
    """Override `pattern`, `check` and `rewrite`. All places are checked before the first one is rewritten.

    `order` is the pass's place among those that run unasked, ascending; one without runs where it is named, and last.
    """

    order: ClassVar[int | None] = None

    @abstractmethod
    def pattern(self, graph: onnx_ir.Graph) -> Iterable[onnx_ir.Node]:
        """A node for each place where the form may stand."""

    @abstractmethod
    def check(self, anchor: onnx_ir.Node, batches: Batches) -> Found | None:
        """What is to be rewritten; None where it is another thing altogether. Raises Miss."""

    @abstractmethod
    def rewrite(self, found: Found, editor: Editor) -> None:
        """Put the new nodes in."""

    def prove(self, reference: Reference, graph: Path) -> Verdict:
        """Whether `graph`, this pass's result, may be kept: by default, if its outputs are the reference's."""
        return reference.verdict(graph)

    def call(self, model: onnx_ir.Model) -> PassResult[RewriteReport]:
        """Edits `model`: lifts its Constant nodes to initializers, rewrites, drops what is no longer used."""
        from onnx_ir.passes import common

        before = len(model.graph)
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        places = list(self.pattern(model.graph))
        found: list[Found] = []
        misses: list[NearMiss] = []
        batches = Batches(model) if places else None
        for anchor in places:
            assert batches is not None
            try:
                one = self.check(anchor, batches)
            except Miss as miss:
                misses.append(miss.near_miss)
            else:
                found += [] if one is None else [one]
        editor = Editor(model, self.name)
        for one in found:
            self.rewrite(one, editor)
        if found:
            common.RemoveUnusedNodesPass()(model)
            model.graph.sort()
        report = RewriteReport(
            matches=len(found) + len(misses),
            rewritten=len(found),
            near_misses=tuple(misses),
            nodes_before=before,
            nodes_after=len(model.graph),
        )
        return PassResult(model, bool(found), report)


class Editor:
    """New nodes and constants with names of their own; nodes carry the pass's name, and their origin's source line."""

    def __init__(self, model: onnx_ir.Model, name: str) -> None:
        self._graph, self._pass = model.graph, name
        taken = (*model.graph.initializers.values(), *model.graph.inputs, *(o for n in model.graph for o in n.outputs))
        self._names = {value.name for value in taken} | {node.name for node in model.graph}

    def constant(self, array: Any, name: str) -> onnx_ir.Value:
        """A numpy array as an initializer."""
        import onnx_ir as ir

        name = self._fresh(name)
        tensor = ir.tensor(array, name=name)
        value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        self._graph.register_initializer(value)
        return value

    def node(
        self, op: str, inputs: Sequence[onnx_ir.Value | None], *, before: onnx_ir.Node, **attributes: Any
    ) -> onnx_ir.Value:
        """Insert a node with one output, of its first input's dtype (a Shape's are int64), ahead of `before`."""
        import onnx_ir as ir

        name = self._fresh(f"{before.name or before.op_type}/{self._pass}/{op}")
        assert inputs[0] is not None
        kind = ir.TensorType(ir.DataType.INT64) if op == "Shape" else inputs[0].type
        output = ir.Value(name=name, type=kind)
        new = ir.node(op, list(inputs), attributes=attributes, outputs=[output], name=name)
        new.metadata_props[PASS_KEY] = self._pass
        if source := before.metadata_props.get(SOURCE_KEY):
            new.metadata_props[SOURCE_KEY] = source
        self._graph.insert_before(before, new)
        return output

    def reshape(self, value: onnx_ir.Value, shape: Sequence[int], *, before: onnx_ir.Node) -> onnx_ir.Value:
        import numpy as np

        return self.node("Reshape", [value, self.constant(np.array(shape, np.int64), "shape")], before=before)

    def turned(self, value: onnx_ir.Value, *, before: onnx_ir.Node) -> onnx_ir.Value:
        """[A, B, C] as [B, A, C]; a transposition that `value` comes from is taken back instead."""
        node, perm = value.producer(), (1, 0, 2)
        if node is not None and node.op_type == "Transpose" and tuple(node.attributes.get_ints("perm", ())) == perm:
            assert node.inputs[0] is not None
            return node.inputs[0]
        return self.node("Transpose", [value], before=before, perm=perm)

    def moved(
        self, nodes: Sequence[onnx_ir.Node], source: onnx_ir.Value, value: onnx_ir.Value, *, before: onnx_ir.Node
    ) -> onnx_ir.Value:
        """`value` taken the way that `nodes` (one output each) take `source`: copies of them, ahead of `before`."""
        copies = {source: value}
        for node in nodes:
            inputs = [one if one is None else copies.get(one, one) for one in node.inputs]
            attributes = {name: one.value for name, one in node.attributes.items()}
            copies[node.outputs[0]] = self.node(node.op_type, inputs, before=before, **attributes)
        return copies[nodes[-1].outputs[0]]

    def replace(self, old: onnx_ir.Value, new: onnx_ir.Value) -> None:
        """Everything that used `old` uses `new`, which takes its name where it is an output of the graph."""
        maker, before = new.producer(), old.producer()
        if maker is not None and len(maker.outputs) == 1:
            stood_for = None if before is None else before.metadata_props.get(VALUE_KEY)
            maker.metadata_props.setdefault(VALUE_KEY, stood_for or old.name or "")
        if old.is_graph_output():
            places = [index for index, value in enumerate(self._graph.outputs) if value is old]
            new.shape, new.type = old.shape, old.type
            for index in places:
                self._graph.outputs[index] = new
            name, old.name = old.name, self._fresh(f"{old.name}/before")
            new.name = name
        old.replace_all_uses_with(new)

    def _fresh(self, base: str) -> str:
        name, count = base, 2
        while name in self._names:
            name, count = f"{base}_{count}", count + 1
        self._names.add(name)
        return name


def in_words(node: onnx_ir.Node) -> str:
    """The node's name and operator, as reports print it."""
    return f"{node.name or node.outputs[0].name} ({node.op_type})"


def only_user(value: onnx_ir.Value) -> onnx_ir.Node | None:
    """The node that uses `value`, once and alone; None where there is another use, or it is an output of the graph."""
    uses = tuple(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None
