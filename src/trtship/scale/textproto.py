"""Protocol Buffers' text format, as far as a config.pbtxt needs it: written without the protobuf package.

The grammar is https://protobuf.dev/reference/protobuf/textformat-spec/.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import TypeAlias

WIDTH = 110


class Word(str):
    """A name that stands unquoted: a value of an enumeration."""

    __slots__ = ()


class Comment(str):
    """Stands in the place of a field's name; its value is the text."""

    __slots__ = ()


Value: TypeAlias = "str | Word | bool | int | tuple[int, ...] | Sequence[tuple[str, Value]]"
"""Of a field: a string, an enumeration's name, a number, a list of numbers, or a message's fields."""
Fields: TypeAlias = Sequence[tuple[str, Value]]
"""A message's fields in their order; one that repeats stands there several times."""

COMMENT = Comment("#")


def text_of(fields: Fields, *, indent: int = 0) -> str:
    """The message as text, a field a line, each line with its end."""
    return "".join(_lines(fields, "  " * indent))


def quoted(text: str) -> str:
    """A string literal: printable ASCII as it is, every other byte of its UTF-8 as three octal digits."""
    return '"' + "".join(_escaped(byte) for byte in text.encode()) + '"'


def _escaped(byte: int) -> str:
    if byte in b'"\\':
        return f"\\{byte:c}"
    return chr(byte) if 0x20 <= byte < 0x7F else f"\\{byte:03o}"


def _lines(fields: Fields, pad: str) -> Iterable[str]:
    for name, value in fields:
        if isinstance(name, Comment):
            yield from _comment(str(value), pad)
        elif isinstance(value, bool):
            yield f"{pad}{name}: {str(value).lower()}\n"
        elif isinstance(value, int | Word):
            yield f"{pad}{name}: {value}\n"
        elif isinstance(value, str):
            yield f"{pad}{name}: {quoted(value)}\n"
        elif isinstance(value, tuple) and value and all(isinstance(one, int) for one in value):
            yield f"{pad}{name}: [{', '.join(map(str, value))}]\n"
        else:
            yield f"{pad}{name} {{\n{text_of(value, indent=len(pad) // 2 + 1)}{pad}}}\n"  # type: ignore[arg-type]


def _comment(text: str, pad: str) -> Iterable[str]:
    """Wrapped, and with no character in it that could end its line early."""
    plain = " ".join(text.split())
    for line in textwrap.wrap(plain, WIDTH - len(pad), break_long_words=False, break_on_hyphens=False):
        yield f"{pad}# {line}\n"
