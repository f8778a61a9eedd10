"""Drawn inputs: inside their domains, with their edges, and row by row."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtship.errors import SpecError
from trtship.input_ranges import parse_input_ranges, tried_inputs, with_input_ranges
from trtship.input_values import InputDomain, Part, random_inputs
from trtship.spec import TensorSpec

IDS = TensorSpec(name="ids", shape=("B", "L"), dtype="int64")


def draw(spec: TensorSpec, domain: InputDomain, *, seed: int = 0, **sizes: int) -> np.ndarray:
    return random_inputs([spec], sizes, seed=seed, domains={spec.name: domain})[spec.name]


def whole(low: float, high: float, **more: object) -> InputDomain:
    return InputDomain(kind="uniform", low=low, high=high, origin="test", **more)  # type: ignore[arg-type]


@given(st.integers(-5, 50), st.integers(0, 300), st.integers(1, 9), st.integers(1, 9), st.integers(0, 99), st.data())
def test_whole_numbers_are_inside_and_hold_the_special_ones(
    low: int, more: int, batch: int, length: int, seed: int, data: st.DataObject
) -> None:
    special = data.draw(st.lists(st.integers(low, low + more), max_size=3, unique=True))
    found = draw(IDS, whole(low, low + more, values=tuple(map(float, special))), seed=seed, B=batch, L=length)
    assert found.dtype == np.int64
    assert low <= found.min()
    assert found.max() <= low + more
    wanted = list(dict.fromkeys([*special, low, low + more]))
    assert set(wanted[: found.size]) <= set(found.ravel().tolist())
    if found.size > more:
        assert set(found.ravel().tolist()) == set(range(low, low + more + 1))


@given(st.integers(1, 9), st.integers(1, 9), st.integers(2, 400), st.integers(0, 5))
def test_the_first_rows_are_those_of_a_smaller_batch(one: int, two: int, high: int, seed: int) -> None:
    few, many = sorted((one, two))
    for domain in (whole(0, high, values=(0.0, float(high))), InputDomain(kind="mask", low=0, high=1, origin="")):
        short, long = (draw(IDS, domain, seed=seed, B=b, L=6) for b in (few, many))
        np.testing.assert_array_equal(short, long[: len(short)])


def test_few_rows_have_numbers_of_all_parts_of_a_range() -> None:
    found = draw(TensorSpec(name="t", shape=("B",), dtype="int64"), whole(0, 999), B=9)
    assert {0, 999} <= set(found.tolist())
    assert all(((found >= low) & (found < low + 250)).any() for low in range(0, 1000, 250))


def test_a_mask_is_full_in_the_first_row_and_has_one_element_in_the_second() -> None:
    found = draw(IDS, InputDomain(kind="mask", low=0, high=1, origin=""), B=9, L=16)
    assert found[0].all()
    assert found[1].sum() == 1
    assert (np.diff(found, axis=1) <= 0).all()
    assert len(set(found.sum(axis=1).tolist())) > 3


def test_bounds_follow_a_dynamic_size() -> None:
    domain = whole(1, 4, size="L")
    for length in (4, 9):
        found = draw(TensorSpec(name="n", shape=("B",), dtype="int64"), domain, B=16, L=length)
        assert (found.min(), found.max()) == (1, length)


def test_columns_have_ranges_of_their_own() -> None:
    parts = (Part(axis=1, start=0, stop=1, low=0, high=2), Part(axis=1, start=1, stop=2, low=0, high=99))
    spec = TensorSpec(name="x", shape=("B", 2), dtype="int32")
    found = draw(spec, whole(0, 2, parts=parts), B=200)
    assert (found[:, 0].max(), found[:, 1].max()) == (2, 99)
    assert set(found[:, 1].tolist()) == set(range(100))


def test_floats_have_both_ends() -> None:
    found = draw(TensorSpec(name="x", shape=("B", 3)), whole(-2.5, 1.5, values=(-2.5, 1.5)), B=4)
    assert (found.min(), found.max()) == (-2.5, 1.5)
    assert found.dtype == np.float32


# --input-range


INPUTS = (IDS, TensorSpec(name="x", shape=("B", 2)), TensorSpec(name="b", shape=("B",), dtype="uint8"))


def test_a_range_takes_the_place_of_what_the_graph_tells() -> None:
    table = whole(0, 99, values=(0.0, 99.0, 50.0), strict=True)
    given = parse_input_ranges(["ids=10:60", "x=-1e3:2.5"])
    found = with_input_ranges({"ids": table}, INPUTS, given)
    assert (found["ids"].low, found["ids"].high, found["ids"].values) == (10, 60, (50, 10, 60))
    assert (found["x"].low, found["x"].high) == (-1000, 2.5)
    assert [one.invented for one in tried_inputs(INPUTS, found)] == [False, False, True]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ids", "is not a range"),
        ("ids=1", "is not a range"),
        ("ids=a:b", "is not a range"),
        ("=1:2", "is not a range"),
        ("ids=2:1", "LOW is 2, above HIGH, 1"),
        ("ids=0:inf", "is not finite"),
        ("ids=nan:1", "is not finite"),
        ("other=0:1", "has no input 'other'"),
        ("b=0:256", "does not fit the input's dtype, uint8"),
        ("b=-1:5", "does not fit the input's dtype, uint8"),
        ("ids=0.5:2", "holds whole numbers"),
        ("ids=0:100", "reaches beyond what the model can look up"),
        ("ids=-1:5", "reaches beyond what the model can look up"),
    ],
)
def test_a_wrong_range_is_refused_with_its_reason(text: str, said: str) -> None:
    with pytest.raises(SpecError) as caught:
        with_input_ranges({"ids": whole(0, 99, strict=True)}, INPUTS, parse_input_ranges([text]))
    assert said in str(caught.value)
    assert caught.value.do


def test_a_range_is_given_once() -> None:
    with pytest.raises(SpecError, match="more than once"):
        parse_input_ranges(["ids=0:1", "ids=0:2"])
