"""A graph as a search sees it: which tensors come before which, what each is called in the reference, parts of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtship.graphs.roundings import FLOATS
from trtship.graphs.storage import EXTERNAL_OVER, load_graph
from trtship.passes.known import Known
from trtship.passes.quantize_places import name_of
from trtship.passes.rewrite import PASS_KEY, VALUE_KEY

if TYPE_CHECKING:
    import onnx_ir


class Lineage:
    """The tensors that the nodes of `model` make: `order` is their place, first to last; `makers` their nodes."""

    def __init__(self, model: onnx_ir.Model) -> None:
        self.model = model
        self.makers = {value.name or "": node for node in model.graph for value in node.outputs if value.name}
        self.order = {name: place for place, name in enumerate(self.makers)}
        self._above: dict[str, int] = {}
        for node in model.graph:
            bits = 0
            for value in node.inputs:
                name = "" if value is None else value.name or ""
                if name in self.order:
                    bits |= self._above.get(name, 0) | 1 << self.order[name]
            self._above.update((value.name or "", bits) for value in node.outputs)

    def named(self, name: str) -> onnx_ir.Node:
        """The node of this name."""
        return next(node for node in self.model.graph if name_of(node) == name)

    def is_float(self, name: str) -> bool:
        values = (value for value in self.makers[name].outputs if value.name == name)
        return any(value.dtype is not None and value.dtype.name in FLOATS for value in values)

    def is_above(self, name: str, other: str) -> bool:
        """Whether `other` is made out of `name`."""
        return bool(self._above[other] >> self.order[name] & 1)

    def region(self, target: str, known: Iterable[str]) -> tuple[list[onnx_ir.Node], list[str]]:
        """The nodes between `target` and the nearest tensors above it that are `known`, first to last; and those
        tensors, and inputs of the graph, that they read."""
        stops, seen, nodes, reads, todo = set(known), set[str](), dict[str, Any](), dict[str, None](), [target]
        while todo:
            name = todo.pop()
            if name in seen:
                continue
            seen.add(name)
            node = self.makers[name]
            nodes[name] = node
            for value in node.inputs:
                if value is None or (value.is_initializer() and not value.is_graph_input()):
                    continue
                source = value.name or ""
                if source in stops or source not in self.makers:
                    reads[source] = None
                else:
                    todo.append(source)
        distinct = {id(node): node for _, node in sorted(nodes.items(), key=lambda item: self.order[item[0]])}
        return list(distinct.values()), sorted(reads, key=lambda name: self.order.get(name, -1))

    def name_in(self, reference: Lineage, name: str) -> str | None:
        """What the reference calls a tensor: its own name, or the one that it took the place of; of a cast that the
        precision pass put in, the name of what it casts."""
        if name in reference.makers:
            return name
        node = self.makers.get(name)
        if node is None:
            return None
        stood_for = node.metadata_props.get(VALUE_KEY)
        if stood_for in reference.makers:
            return stood_for
        source = node.inputs[0].name if node.inputs and node.inputs[0] is not None else None
        is_cast = node.op_type == "Cast" and node.metadata_props.get(PASS_KEY) == "precision"
        return self.name_in(reference, source) if is_cast and source else None

    def shapes(self, feeds: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        """The shape of every floating tensor on these inputs, as far as it can be told."""
        sizes: dict[str, int] = {}
        for value in self.model.graph.inputs:
            if value.shape is not None and value.name in feeds:
                pairs = zip(value.shape, feeds[value.name or ""].shape, strict=True)
                sizes.update((str(letter.value), size) for letter, size in pairs if not isinstance(letter, int))
        known = Known(self.model, sizes)
        found = {}
        for node in self.model.graph:
            for value in node.outputs:
                shape = known.shape(value) if value.name and self.is_float(value.name) else None
                if shape is not None:
                    found[value.name or ""] = shape
        return found


def typed(path: Path) -> onnx_ir.Model:
    """The graph at `path`, its weights in memory, every tensor's type and shape inferred. Raises GraphError,
    DependencyError."""
    graph = load_graph(path)  # first: where onnx_ir is missing, it says what to install
    import onnx_ir as ir
    from onnx_ir.passes import common

    model: onnx_ir.Model = ir.external_data.load_to_model(graph)
    if model.functions:
        common.InlinePass()(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    return common.ShapeInferencePass(strict_mode=False)(model).model


def copy_of(model: onnx_ir.Model) -> onnx_ir.Model:
    """A copy whose tensors' types may be changed: onnx_ir's own clone shares them with the original."""
    import onnx_ir as ir

    copy = model.clone()
    values = [*copy.graph.inputs, *copy.graph.initializers.values(), *(o for n in copy.graph for o in n.outputs)]
    for value in values:
        if value.dtype is not None:
            value.type = ir.TensorType(value.dtype)
    return copy


def part(model: onnx_ir.Model, inputs: Sequence[str], outputs: Sequence[str]) -> onnx_ir.Model:
    """The part of `model` that makes `outputs` from `inputs`."""
    import onnx_ir as ir

    graph = ir.convenience.extract(model.graph, list(inputs), list(outputs))
    return ir.Model(graph, ir_version=model.ir_version)


def written(model: onnx_ir.Model, path: Path) -> Path:
    """As an ONNX file, which may well be a wrong one; its weights beside it where protobuf would not hold them."""
    import onnx_ir as ir

    tensors = [value.const_value for value in model.graph.initializers.values() if value.const_value is not None]
    if sum(tensor.nbytes for tensor in tensors) > EXTERNAL_OVER:
        ir.save(model, path, external_data=path.name + ".data")
    else:
        ir.save(model, path)
    return path
