"""Which files an ONNX graph keeps tensors in, read from its bytes before any native code sees them.

onnx is absent where bundles only run, and its parser resolves nothing: this is the part of protobuf's wire format
(https://protobuf.dev/programming-guides/encoding/) that leads to `TensorProto.external_data`.
"""

from __future__ import annotations

from collections.abc import Iterator

from trtship.errors import GraphError

MAX_FIELDS = 5_000_000
"""Fields that are looked at. A graph of 100,000 nodes has about 2 million; reading this many takes seconds."""
ORT_FORMAT = b"ORTM"
"""At byte 4 of onnxruntime's own format, which it recognizes whatever the file's name says."""
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
# onnx.proto: message -> field number -> message of that field. Only what leads to a tensor.
_BELOW: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "Tensor": {13: "Entry"},
}
_KEY, _VALUE = 1, 2


def external_locations(graph: bytes, *, what: str) -> tuple[str, ...]:
    """Return every `location` of external data in a serialized `ModelProto`, each once, in the order of first use.

    Initializers, tensors of attributes, subgraphs, functions and training graphs are searched. A location counts
    whether or not `data_location` says that it is used.

    Args:
        graph: the bytes of the ONNX file.
        what: how messages call it.

    Raises:
        GraphError: the bytes are not protobuf, or have more than `MAX_FIELDS` fields.
    """
    if graph[4:8] == ORT_FORMAT:
        raise _refused(what, "it is in onnxruntime's own format")
    try:
        return tuple(dict.fromkeys(_locations(graph)))
    except (_Malformed, UnicodeDecodeError) as error:
        raise _refused(what, f"it is not an ONNX model: {error}") from error


class _Malformed(ValueError):
    pass


def _locations(data: bytes) -> Iterator[str]:
    """Depth first, with a stack of our own: nesting may be as deep as the file is long."""
    counted = 0
    stack = [(0, len(data), "Model")]
    while stack:
        begin, end, message = stack.pop()
        if message == "Entry":
            if (location := _location(data, begin, end)) is not None:
                yield location
            continue
        below, found = _BELOW[message], []
        for number, first, last in _fields(data, begin, end):
            counted += 1
            if first >= 0 and number in below:
                found.append((first, last, below[number]))
        if counted > MAX_FIELDS:
            raise _Malformed(f"it has more than {MAX_FIELDS} fields")
        stack += reversed(found)


def _location(data: bytes, begin: int, end: int) -> str | None:
    """The value of a `StringStringEntryProto` whose key is `location`; None for another."""
    key = value = b""
    for number, first, last in _fields(data, begin, end):
        if number == _KEY and first >= 0:
            key = data[first:last]
        elif number == _VALUE and first >= 0:
            value = data[first:last]
    return value.decode() if key == b"location" else None


def _fields(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """The number of each field and where its bytes begin and end; -1 for a field that is no bytes."""
    count = 0
    while at < end:
        count += 1
        if count > MAX_FIELDS:
            raise _Malformed(f"it has more than {MAX_FIELDS} fields")
        tag = data[at]
        at += 1
        if tag >= 0x80:
            tag, at = _varint(data, at - 1, end)
        number, wire = tag >> 3, tag & 7
        first = last = -1
        if wire == _BYTES:
            length, first = _varint(data, at, end)
            at = last = first + length
        elif wire == _VARINT:
            _, at = _varint(data, at, end)
        elif wire == _FIXED64:
            at += 8
        elif wire == _FIXED32:
            at += 4
        else:
            raise _Malformed(f"a field has the wire type {wire}")
        if at > end:
            raise _Malformed("a field ends behind its message")
        if number == 0:
            raise _Malformed("a field has the number 0")
        yield number, first, last


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """The number at `at` (10 bytes at most), and where the next field begins."""
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise _Malformed("a number does not end")


def _refused(what: str, why: str) -> GraphError:
    return GraphError(
        f"{what} is not opened", why=why, do="deploy the model again, or copy the bundle again from where it was made"
    )
