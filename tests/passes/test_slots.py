"""The tables of inputs that are no activations, held against the schemas of `onnx.defs`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import onnx
import pytest

from trtship.graphs.operators import FP32_SLOTS
from trtship.graphs.slots import COORDINATES, INDICES, SHAPE_ONLY, SIZES, is_exact, is_size

OPSETS = range(17, 24)
FLOATS = {"tensor(float)", "tensor(float16)", "tensor(bfloat16)", "tensor(double)"}

DATA_WITHOUT_FLOATS = {
    "And", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "Not", "Or", "Xor",
    "ConvInteger", "DequantizeLinear", "MatMulInteger", "QLinearConv", "QLinearMatMul", "QuantizeLinear",
    "ConcatFromSequence", "SequenceInsert", "SequenceLength", "SequenceMap", "OptionalGetElement", "OptionalHasElement",
    "ImageDecoder", "RegexFullMatch", "StringConcat", "StringNormalizer", "StringSplit", "TfIdfVectorizer",
}  # fmt: skip
"""Work on booleans, integers, quantized tensors, sequences or strings: those are the data."""
SEQUENCES = {("SequenceAt", 0), ("SequenceErase", 0), ("SequenceInsert", 0)}

ACTIVATIONS = {
    "ArgMax", "ArgMin", "Attention", "BatchNormalization", "Bernoulli", "Cast", "CastLike", "DequantizeLinear",
    "DynamicQuantizeLinear", "Equal", "Greater", "GreaterOrEqual", "IsInf", "IsNaN", "Less", "LessOrEqual",
    "Multinomial", "NonMaxSuppression", "NonZero", "Optional", "OptionalGetElement", "OptionalHasElement", "Pow",
    "QLinearConv", "QLinearMatMul", "QuantizeLinear", "RMSNormalization", "SequenceConstruct", "SequenceInsert",
    "SequenceMap", "SplitToSequence",
}  # fmt: skip
"""Take floats of a type that their result does not have, and work on them."""


def read_inputs() -> Iterator[tuple[str, int, set[str], bool]]:
    """Operator, slot, the types that it takes in any of the opsets, and whether the result has the same type."""
    found: dict[tuple[str, int], tuple[set[str], bool]] = {}
    names = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}
    for name in names:
        for opset in OPSETS:
            try:
                schema = onnx.defs.get_schema(name, opset, "")
            except onnx.defs.SchemaError:
                continue
            if schema.deprecated:
                continue
            types = {c.type_param_str: set(c.allowed_type_strs) for c in schema.type_constraints}
            for slot, formal in enumerate(schema.inputs):
                allowed = types.get(formal.type_str, {formal.type_str})
                tied = formal.type_str in {output.type_str for output in schema.outputs}
                before, was_tied = found.get((name, slot), (set(), True))
                found[name, slot] = before | allowed, was_tied and tied
    for (name, slot), (allowed, tied) in found.items():
        yield name, slot, allowed, tied


@cache
def inputs() -> tuple[tuple[str, int, set[str], bool], ...]:
    """Return what `read_inputs` yields; reading all schemas takes a second."""
    return tuple(read_inputs())


def test_every_input_that_takes_no_floats_is_in_a_table_or_is_data_of_another_kind() -> None:
    missing = [
        (name, slot)
        for name, slot, allowed, _ in inputs()
        if not allowed & FLOATS
        and not is_exact(name, slot)
        and name not in DATA_WITHOUT_FLOATS
        and (name, slot) not in SEQUENCES
    ]
    assert missing == []


def test_every_float_whose_type_the_result_does_not_have_is_in_a_table_or_is_an_activation() -> None:
    missing = [
        (name, slot)
        for name, slot, allowed, tied in inputs()
        if allowed & FLOATS
        and not tied
        and not is_exact(name, slot)
        and slot not in COORDINATES.get(name, ())
        and name not in ACTIVATIONS | SHAPE_ONLY
    ]
    assert missing == []


def test_the_tables_name_operators_and_slots_that_exist() -> None:
    known = {(name, slot) for name, slot, _, _ in inputs()} | {("Upsample", 1)}  # deprecated since opset 10
    listed = {(op, slot) for table in (SIZES, INDICES, COORDINATES) for op, slots in table.items() for slot in slots}
    assert listed <= known


@pytest.mark.parametrize(("op", "slot"), sorted(FP32_SLOTS))
def test_what_stays_float32_whatever_the_operator_computes_in_may_be_float32_there(op: str, slot: int) -> None:
    allowed = {(name, place): types for name, place, types, _ in inputs()}
    assert "tensor(float)" in allowed.get((op, slot), {"tensor(float)"})


def test_a_size_lets_no_data_through_and_an_index_does() -> None:
    assert is_size("Resize", 2)
    assert is_size("Shape", 0)
    assert not is_exact("Shape", 0)
    assert is_exact("Gather", 1)
    assert not is_size("Gather", 1)
