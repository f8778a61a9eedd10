"""Whether an ONNX file holds a graph at all: checked once when it is read, before anything walks along its edges.

The file may come from anybody. Each rule below is one that a reader somewhere relies on:

1. No cycle, no name that is read and never made, none that is made twice, and graphs within graphs not deeper than
   `DEPTH`; functions do not call themselves. Whoever follows a cycle never ends.
2. There is an output.
3. Each tensor has a known type, sizes of 0 or more, and exactly the data that these ask for.
4. External data lies in a regular file in the graph's folder, and a tensor's part of it within the file.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from trtship.errors import GraphError

DEPTH = 16
"""Graphs within graphs that are looked into."""
_BITS = {
    1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64, 15: 128, 16: 16,
    17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4, 24: 8, 25: 2, 26: 2,
}  # fmt: skip
"""Bits of an element, by TensorProto.DataType."""
_STRING, _EXTERNAL = 8, 1
_COMPLEX = {14, 15}
_FIELDS = {
    "float_data": {1, 14}, "int64_data": {7}, "double_data": {11, 15}, "uint64_data": {12, 13}, "string_data": {8},
    "int32_data": {2, 3, 4, 5, 6, 9, 10, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26},
}  # fmt: skip
"""Where a tensor's data is when it is not raw, by its type (onnx.proto, TensorProto)."""
_MAX_COUNT = 2**62


def check_wellformed(model: Any, path: Path) -> tuple[Path, ...]:
    """Return the files of external data that an `onnx.ModelProto`, which was read from `path` without them, needs; each
    once, by name. Raises GraphError, which names the tensor or node."""
    where = _Where(path)
    _check_functions(model, where)
    files: dict[Path, None] = {}
    for graph, outer in _graphs(model.graph, where):
        _check_texts(graph, where)
        _check_edges(graph.node, _given(graph), [value.name for value in graph.output], outer, where)
    for tensor in tensors_of(model):
        if (file := _check_tensor(tensor, where)) is not None:
            files[file] = None
    if not model.graph.output:
        raise where.error("it has no outputs")
    return tuple(sorted(files))


class _Where:
    def __init__(self, path: Path) -> None:
        self.path = path

    def error(self, why: str) -> GraphError:
        return GraphError(f"{self.path} is not a valid ONNX graph", why=why, do="export it again")

    def outside(self, tensor: str, location: str) -> GraphError:
        return GraphError(
            f"{self.path} keeps data outside its folder",
            why=f"that of the tensor {tensor} is in {location}",
            do="save it beside the graph",
        )


def tensors_of(model: Any) -> Iterator[Any]:
    """Every `onnx.TensorProto` of a model that `check_wellformed` has not refused for its depth."""
    yield from _tensors_in(model.graph, 0)
    for function in model.functions:
        yield from _in_nodes(function.node, 0)
        for attribute in function.attribute_proto:
            yield from _in_attribute(attribute, 0)


def _tensors_in(graph: Any, depth: int) -> Iterator[Any]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _in_nodes(graph.node, depth)


def _in_nodes(nodes: Iterable[Any], depth: int) -> Iterator[Any]:
    for node in nodes:
        for attribute in node.attribute:
            yield from _in_attribute(attribute, depth)


def _in_attribute(attribute: Any, depth: int) -> Iterator[Any]:
    if attribute.HasField("t"):
        yield attribute.t
    yield from attribute.tensors
    for sparse in (
        *([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else ()),
        *attribute.sparse_tensors,
    ):
        yield from (sparse.values, sparse.indices)
    if depth < DEPTH:
        for graph in _subgraphs(attribute):
            yield from _tensors_in(graph, depth + 1)


def _subgraphs(attribute: Any) -> list[Any]:
    return [*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs]


def _graphs(graph: Any, where: _Where) -> Iterator[tuple[Any, frozenset[str]]]:
    """The graph and those within it, each with the names that it may read from around it."""
    waiting: list[tuple[Any, frozenset[str], int]] = [(graph, frozenset(), 0)]
    while waiting:
        one, outer, depth = waiting.pop()
        if depth > DEPTH:
            raise where.error(f"it has graphs within graphs, more than {DEPTH} deep")
        yield one, outer
        inner: frozenset[str] | None = None
        for node in one.node:
            for attribute in node.attribute:
                for sub in _subgraphs(attribute):
                    inner = inner if inner is not None else outer | _made(one)
                    waiting.append((sub, inner, depth + 1))


def _check_texts(graph: Any, where: _Where) -> None:
    """protobuf gives bytes for a text that is not UTF-8."""
    texts = [node.op_type for node in graph.node]
    texts += [name for node in graph.node for name in (node.name, node.domain, *node.input, *node.output)]
    for value in (*graph.input, *graph.output, *graph.value_info):
        texts += [value.name, *(dim.dim_param for dim in value.type.tensor_type.shape.dim)]
    texts += [tensor.name for tensor in graph.initializer]
    for text in texts:
        if not isinstance(text, str):
            raise where.error(f"the name {text!r} in it is not UTF-8")


def _made(graph: Any) -> frozenset[str]:
    return frozenset(_given(graph).union(*(node.output for node in graph.node)) - {""})


def _given(graph: Any) -> set[str]:
    """The names that are there before any node has run."""
    names = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    return names | {sparse.values.name for sparse in graph.sparse_initializer}


def _check_edges(
    nodes: Sequence[Any], given: set[str], outputs: Iterable[str], outer: frozenset[str], where: _Where
) -> None:
    """Every name is made once, by something that does not depend on it."""
    maker: dict[str, int] = {}
    for index, node in enumerate(nodes):
        for name in node.output:
            if name and (name in given or name in maker):
                raise where.error(f"{name} is made twice, the second time by {_called(node)}")
            if name:
                maker[name] = index
    needs: list[set[int]] = []
    for node in nodes:
        reads = {name for name in _reads(node, 0) if name}
        for name in reads - maker.keys() - given - outer:
            raise where.error(f"{_called(node)} reads {name}, which nothing makes")
        needs.append({maker[name] for name in reads if name in maker})
    for name in outputs:
        if name not in maker and name not in given and name not in outer:
            raise where.error(f"its output {name} is made by nothing")
    left = _in_cycles(needs)
    if left:
        raise where.error(f"{_called(nodes[min(left)])} depends on its own result: the graph has a cycle")


def _in_cycles(needs: list[set[int]]) -> set[int]:
    """The nodes that never come to their turn."""
    users: dict[int, list[int]] = {}
    missing = [len(some) for some in needs]
    for index, some in enumerate(needs):
        for one in some:
            users.setdefault(one, []).append(index)
    ready, left = [index for index, count in enumerate(missing) if not count], set(range(len(needs)))
    while ready:
        done = ready.pop()
        left.discard(done)
        for user in users.get(done, ()):
            missing[user] -= 1
            if not missing[user]:
                ready.append(user)
    return left


def _reads(node: Any, depth: int) -> Iterator[str]:
    """The names that a node reads, and what graphs within it read from around them."""
    yield from node.input
    if depth >= DEPTH:
        return
    for attribute in node.attribute:
        for graph in _subgraphs(attribute):
            own = _made(graph)
            for inner in graph.node:
                yield from (name for name in _reads(inner, depth + 1) if name not in own)
            yield from (value.name for value in graph.output if value.name not in own)


def _called(node: Any) -> str:
    return f"the node {node.name} ({node.op_type})" if node.name else f"a node of type {node.op_type}"


def _check_functions(model: Any, where: _Where) -> None:
    """Functions are graphs too, and none calls itself, by way of others either."""
    for function in model.functions:
        _check_edges(function.node, set(function.input), function.output, frozenset(), where)
    known = {(function.domain, function.name): index for index, function in enumerate(model.functions)}
    calls = [
        {known[key] for node in function.node if (key := (node.domain, node.op_type)) in known}
        for function in model.functions
    ]
    if left := _in_cycles(calls):
        raise where.error(f"the function {model.functions[min(left)].name} calls itself")


def _check_tensor(tensor: Any, where: _Where) -> Path | None:
    """The file that has its data, if another has."""
    name, kind = tensor.name or "a constant without a name", tensor.data_type
    if kind != _STRING and kind not in _BITS:
        raise where.error(f"the tensor {name} has the unknown type {kind}")
    if any(size < 0 for size in tensor.dims):
        raise where.error(f"the tensor {name} has the shape {list(tensor.dims)[:8]}: a size is negative")
    count = math.prod(tensor.dims)
    if count > _MAX_COUNT:
        raise where.error(f"the tensor {name} has the shape {list(tensor.dims)[:8]}: no memory holds that")
    size = 0 if kind == _STRING else (count * _BITS[kind] + 7) // 8
    if tensor.data_location == _EXTERNAL:
        return _external(tensor, name, size, where)
    if tensor.HasField("raw_data"):
        if kind == _STRING or len(tensor.raw_data) != size:
            raise where.error(
                f"the tensor {name} has {len(tensor.raw_data)} bytes of data where its shape takes {size}"
            )
        return None
    field = next(field for field, kinds in _FIELDS.items() if kind in kinds)
    wanted = count * (2 if kind in _COMPLEX else 1)
    if _BITS.get(kind, 8) < 8:
        wanted = size  # two or four to a number
    if len(getattr(tensor, field)) != wanted:
        raise where.error(f"the tensor {name} has {len(getattr(tensor, field))} numbers where its shape takes {wanted}")
    return None


def _external(tensor: Any, name: str, size: int, where: _Where) -> Path:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    if not all(isinstance(text, str) for text in entries.values()):
        raise where.error(f"the tensor {name} has its data in {location!r}, which is not UTF-8")
    plain = PurePosixPath(location)
    if not location or any(ord(letter) < 32 for letter in location):
        raise where.error(f"the tensor {name} has its data in a file without a proper name, {location!r}")
    if plain.is_absolute() or ".." in plain.parts:
        raise where.outside(name, location)
    folder = where.path.parent
    file: Path = folder / location
    try:
        inside = file.resolve().is_relative_to(folder.resolve())
        found = file.stat().st_size if file.is_file() else None
    except (OSError, ValueError, RuntimeError) as error:  # a name that is too long, links in a circle
        raise where.error(f"the tensor {name} has its data in {location}, which cannot be read: {error}") from error
    if not inside:
        raise where.outside(name, location)
    if found is None:
        why = "it is not a file" if file.exists() else "there is no such file"
        raise GraphError(f"{where.path} needs its data file {location}", why=why, do=f"put it into {folder}")
    offset = _number(entries, "offset", 0, name, where)
    length = _number(entries, "length", size, name, where)
    if length != size:
        raise where.error(f"the tensor {name} has {length} bytes of data where its shape takes {size}")
    if offset + length > found:
        raise GraphError(
            f"{where.path} needs its data file {location}",
            why=f"it has {found} bytes, fewer than the {offset + length} that the tensor {name} asks for",
            do=f"put the whole of it into {folder}",
        )
    return file


def _number(entries: dict[str, str], key: str, usual: int, name: str, where: _Where) -> int:
    text = entries.get(key)
    if text is None:
        return usual
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise where.error(f"the tensor {name} has its data at the {key} {text[:40]!r}, which is not a number of bytes")
    return int(text)
