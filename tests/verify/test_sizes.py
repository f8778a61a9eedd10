"""Which sizes are tried: at the ends of each range, beside them, and an odd one; alone and all together."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtship.measure import Measure
from trtship.spec import ShapeRange
from trtship.verify.sizes import batches_at, further_sizes, left_out_in_words, places_of, tried_in_words

H, W = ShapeRange(min=32, opt=64, max=512), ShapeRange(min=16, opt=32, max=100)
ranges_of_any = st.lists(st.integers(1, 2000), min_size=3, max_size=3).map(sorted)


@given(ranges_of_any)
def test_every_place_of_a_range_is_in_it(numbers: list[int]) -> None:
    found = places_of(ShapeRange(min=numbers[0], opt=numbers[1], max=numbers[2]))
    low, high = numbers[0], numbers[2]
    assert (found["MIN"], found["MAX"]) == (low, high)
    assert (found["MIN+1"], found["MAX-1"]) == (min(low + 1, high), max(high - 1, low))
    assert all(low <= size <= high for size in found.values())
    if high > low + 1:
        assert found["odd"] % 2 == 1


def test_each_letter_is_tried_alone_and_all_together_the_largest_first() -> None:
    found = further_sizes({"H": H, "W": W}, {"H": 64, "W": 32})
    assert found[0] == {"H": 512, "W": 100}
    assert found[1] == {"H": 32, "W": 16}
    for which in ("MIN", "MAX", "MIN+1", "MAX-1", "odd"):
        h, w = places_of(H)[which], places_of(W)[which]
        assert {"H": h, "W": w} in found
        assert {"H": h, "W": 32} in found
        assert {"H": 64, "W": w} in found
    assert len(found) == 15
    assert {"H": 64, "W": 32} not in found


def test_one_letter_alone_is_all_together_too() -> None:
    assert further_sizes({"L": ShapeRange(min=4, opt=8, max=9)}, {"L": 8}) == ({"L": 9}, {"L": 4}, {"L": 5}, {"L": 7})


def test_a_model_whose_batch_alone_is_dynamic_has_no_further_sizes() -> None:
    assert further_sizes({"B": ShapeRange(min=1, opt=8, max=32)}, {}) == ()


def test_sizes_that_the_model_refuses_are_left_out_and_the_next_that_it_takes_are_tried() -> None:
    found = further_sizes({"H": H, "W": H}, {"H": 64, "W": 64}, allowed=lambda s: s["H"] % 32 == s["W"] % 32 == 0)
    assert all(h % 32 == 0 and w % 32 == 0 for h, w in (one.values() for one in found))
    assert {"H": 512, "W": 512} in found
    assert {"H": 64, "W": 480} in found


def test_a_rule_between_two_letters_leaves_what_is_tried_together() -> None:
    found = further_sizes({"H": H, "W": H}, {"H": 64, "W": 64}, allowed=lambda sizes: sizes["H"] == sizes["W"])
    assert [one["H"] for one in found] == [512, 32, 33, 511, 273]


def test_the_batches_at_other_sizes_are_the_ends_an_odd_one_and_that_of_the_same_place() -> None:
    ranges = {"B": ShapeRange(min=1, opt=8, max=32), "H": H}
    assert batches_at({"H": 512}, ranges, "B", row=1, most=1000) == (1, 3, 32)
    assert batches_at({"H": 33}, ranges, "B", row=1, most=1000) == (1, 2, 3, 32)
    assert batches_at({"H": 511}, ranges, "B", row=1, most=1000) == (1, 3, 31, 32)


def test_a_batch_that_is_too_much_for_one_run_is_the_largest_that_is_not_but_never_below_the_least() -> None:
    ranges = {"B": ShapeRange(min=2, opt=8, max=32), "H": H}
    assert batches_at({"H": 512}, ranges, "B", row=100, most=900) == (2, 3, 9)
    assert batches_at({"H": 512}, ranges, "B", row=100, most=1) == (2,)
    assert batches_at({"H": 512}, ranges, "B", row=1, most=99, allowed=lambda s: s["B"] % 4 == 0) == (4, 32)
    assert batches_at({"H": 512}, ranges, "B", row=4, most=99, allowed=lambda s: s["B"] % 4 == 0) == (4, 24)


def of(**sizes: int) -> Measure:
    return Measure(sizes=sizes, output="y", finite=True, rel_l2=0.0)


def test_few_sizes_are_told_one_by_one_and_many_by_their_letters() -> None:
    assert tried_in_words([of(B=1), of(B=3), of(B=1)]) == "B=1, B=3"
    assert tried_in_words([of()]) == "its one shape"
    many = tried_in_words([of(B=b, H=h) for b in (1, 2, 3) for h in (32, 33, 512)])
    assert many == "9 sets of sizes, of B = 1, 2, 3; H = 32, 33, 512"


@pytest.mark.parametrize("count", [1, 30])
def test_sizes_that_were_not_tried_are_told_with_the_reason_however_many(count: int) -> None:
    text = left_out_in_words([({"H": n}, "no room") for n in range(count)])
    assert text.startswith("not tried at H=0")
    assert text.endswith("no room")
    assert len(text) < 200
    assert ("and 22 more" in text) is (count == 30)
