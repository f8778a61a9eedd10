"""Which types an ONNX file computes in, read without the onnx package: only messages that tell types are looked into.

Field numbers are those of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

FLOAT16, BFLOAT16 = 10, 16
"""Of TensorProto.DataType."""
_LOW = {FLOAT16, BFLOAT16}
_ASKING = {b"to", b"dtype", b"output_dtype"}
"""Attributes whose number is a type."""
_DEPTH = 64
"""Messages within messages that are looked into: graphs within graphs, seldom more than three."""

# message -> field -> the message that is in it; fields with None hold a type's number
_FIELDS: dict[str, dict[int, str | None]] = {
    "Model": {7: "Graph", 25: "Function"},
    "Function": {7: "Node", 11: "Attribute"},
    "Graph": {1: "Node", 5: "Tensor", 11: "Value", 12: "Value", 13: "Value", 15: "Sparse"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "Sparse", 23: "Sparse"},
    "Sparse": {1: "Tensor"},
    "Tensor": {2: None},
    "Value": {2: "Type"},
    "Type": {1: "TensorType", 4: "Inner", 9: "Inner"},
    "Inner": {1: "Type", 2: "Type"},
    "TensorType": {1: None},
}
_Bytes: TypeAlias = memoryview


def is_low_precision(model: bytes | memoryview) -> bool:
    """Return whether a graph computes in float16 or bfloat16 somewhere: a tensor is of that type, or an attribute may
    ask for it (`to` of Cast). True as well for bytes that cannot be read to their end."""
    try:
        return _is_low(memoryview(model), "Model", 0)
    except (IndexError, ValueError):
        return True


def _is_low(message: _Bytes, kind: str, depth: int) -> bool:
    if depth > _DEPTH:
        raise ValueError("too deep")
    wanted = _FIELDS[kind]
    if kind == "Attribute" and _asks_for_low(message):
        return True
    for field, value in _fields(message):
        if field not in wanted:
            continue
        inner = wanted[field]
        if inner is None:
            if isinstance(value, int) and value in _LOW:
                return True
        elif not isinstance(value, int) and _is_low(value, inner, depth + 1):
            return True
    return False


def _asks_for_low(attribute: _Bytes) -> bool:
    """By its name (field 1) and its whole number (field 3)."""
    found = {field: value for field, value in _fields(attribute) if field in (1, 3)}
    name = found.get(1, b"")
    return found.get(3) in _LOW and not isinstance(name, int) and bytes(name) in _ASKING


def _fields(message: _Bytes) -> Iterator[tuple[int, int | _Bytes]]:
    """Field numbers and values: a whole number, or the bytes of a string or message."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        wire = tag & 7
        if wire == 0:
            number, at = _varint(message, at)
            yield tag >> 3, number
            continue
        if wire == 2:
            size, at = _varint(message, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if at + size > len(message):
            raise ValueError("cut off")
        if wire == 2:
            yield tag >> 3, message[at : at + size]
        at += size


def _varint(message: _Bytes, at: int) -> tuple[int, int]:
    found = shift = 0
    while True:
        byte = message[at]
        at += 1
        found |= (byte & 0x7F) << shift
        if byte < 0x80:
            return found, at
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
