"""What is written in protobuf's text format is read by protobuf as it was meant."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from triton_rules import SCHEMA, parsed

from trtship.scale.textproto import COMMENT, Word, quoted, text_of

NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
SIZES = st.lists(st.integers(-1, 2**40), min_size=1, max_size=5).map(tuple)


@given(NAMES)
def test_any_string_comes_back(name: str) -> None:
    assert parsed(f"name: {quoted(name)}").name == name
    assert quoted(name).isascii()
    assert "\n" not in quoted(name)


@given(st.lists(st.tuples(NAMES, SIZES), max_size=40), st.integers(-(2**31), 2**31 - 1), st.booleans(), NAMES)
def test_any_message_comes_back(inputs: list[tuple[str, tuple[int, ...]]], size: int, flag: bool, remark: str) -> None:
    fields: Any = [
        (COMMENT, remark),
        ("max_batch_size", size),
        *[("input", [("name", n), ("data_type", Word("TYPE_INT8")), ("dims", dims)]) for n, dims in inputs],
        ("optimization", [(COMMENT, remark), ("cuda", [("graphs", flag)])]),
        ("input", [("reshape", [])]),
    ]
    found = parsed(text_of(fields))
    assert found.max_batch_size == size
    assert [(one.name, tuple(one.dims)) for one in found.input[:-1]] == inputs
    assert all(one.data_type == SCHEMA.TYPE_INT8 for one in found.input[:-1])
    assert found.input[-1].HasField("reshape")
    assert found.optimization.cuda.graphs is flag


def test_a_comment_stays_a_comment() -> None:
    text = text_of([(COMMENT, 'first\nname: "no"\r\u2028name: "no"'), ("name", "yes")])
    assert parsed(text).name == "yes"
    assert text.splitlines()[0].startswith("# first")


def test_messages_are_indented_and_comments_wrapped() -> None:
    text = text_of([(COMMENT, "word " * 60), ("input", [("name", "a"), ("reshape", [("shape", (1, 2))])])])
    assert max(map(len, text.splitlines())) <= 112
    assert 'input {\n  name: "a"\n  reshape {\n    shape: [1, 2]\n  }\n}\n' in text
