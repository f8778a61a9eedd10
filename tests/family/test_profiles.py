"""Which of a plan's profiles takes the shapes at hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtship.engine.profiles import parse_profiles, profiles_of, usual_profiles
from trtship.errors import InputError, SpecError
from trtship.family.profiles import narrowest
from trtship.spec import ShapeRange, TensorSpec

PICTURES = (TensorSpec(name="input", shape=("B", 3, 8, 8)),)
TEXT = (TensorSpec(name="ids", shape=("B", "L"), dtype="int64"), TensorSpec(name="mask", shape=("B", "L")))


@given(st.lists(st.integers(1, 64), min_size=3, max_size=3).map(sorted), st.integers(1, 70))
def test_a_size_with_a_profile_of_its_own_runs_in_it_and_any_other_in_the_range(sizes: list[int], batch: int) -> None:
    low, opt, high = sizes
    ranges = {"B": ShapeRange(min=low, opt=opt, max=high)}
    single = usual_profiles(PICTURES, ranges)
    profiles = profiles_of(PICTURES, ranges, single=single)
    shapes = {"input": (batch, 3, 8, 8)}
    if not low <= batch <= high:
        with pytest.raises(InputError, match="does not fit the plan"):
            narrowest(profiles, shapes)
        return
    lowest, _, highest = profiles[narrowest(profiles, shapes)]["input"]
    assert (lowest == highest == shapes["input"]) is (batch in single or low == high)
    assert lowest[0] <= batch <= highest[0]


def test_the_usual_sizes_are_min_opt_and_max_once_each() -> None:
    assert usual_profiles(PICTURES, {"B": ShapeRange.parse("1:8:32")}) == (1, 8, 32)
    assert usual_profiles(PICTURES, {"B": ShapeRange.parse("2:2:4")}) == (2, 4)
    assert usual_profiles(PICTURES, {"B": ShapeRange.parse("8")}) == ()


def test_where_another_size_stays_open_there_are_none_unless_asked() -> None:
    ranges = {"B": ShapeRange.parse("1:2:4"), "L": ShapeRange.parse("8:16:32")}
    assert usual_profiles(TEXT, ranges) == ()
    whole, two = profiles_of(TEXT, ranges, single=(2,))
    assert whole["ids"] == whole["mask"] == ((1, 8), (2, 16), (4, 32))
    assert two["ids"] == two["mask"] == ((2, 8), (2, 16), (2, 32))


def test_a_shape_of_another_rank_fits_no_profile() -> None:
    profiles = profiles_of(PICTURES, {"B": ShapeRange.parse("1:2:4")}, single=(1,))
    with pytest.raises(InputError, match=r"\[1, 3, 8\] does not fit"):
        narrowest(profiles, {"input": (1, 3, 8)})


@pytest.mark.parametrize("size", [0, 5])
def test_a_size_that_the_plan_does_not_take_is_refused(size: int) -> None:
    with pytest.raises(SpecError, match=f"batch {size} cannot have kernels of its own"):
        profiles_of(PICTURES, {"B": ShapeRange.parse("1:2:4")}, single=(size,))


def test_a_fixed_batch_has_no_sizes_to_choose() -> None:
    with pytest.raises(SpecError, match="fixed batch"):
        profiles_of((TensorSpec(name="input", shape=(4, 3)),), {}, single=(4,))


def test_what_may_be_typed() -> None:
    assert parse_profiles(None) is None
    assert parse_profiles("none") == ()
    assert parse_profiles("32,1,8,1") == (1, 8, 32)
    for text in ("", "0", "1,", "a", "1:8", "-1", "1;8", "none,1"):
        with pytest.raises(SpecError, match="list of batch sizes"):
            parse_profiles(text)
