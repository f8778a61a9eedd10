from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

from trtship.measure import HUGE, Measure, measure, random_inputs, worst
from trtship.spec import TensorSpec, from_json, to_json

numbers = st.floats(-1e6, 1e6, width=32)
matrices = nps.arrays(np.float32, nps.array_shapes(min_dims=2, max_dims=3, max_side=5), elements=numbers)


def of(reference: object, actual: object) -> Measure:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return measure(reference, actual, output="y", sizes={"B": 2})


def test_the_figures_by_hand() -> None:
    """Rows (3, 4) -> (3, 4) and (0, 2) -> (0, 1): the second is off by half of itself."""
    found = of([[3.0, 4.0], [0.0, 2.0]], [[3.0, 4.0], [0.0, 1.0]])
    assert (found.rel_l2, found.cosine, found.max_abs, found.top1_agreement) == (0.5, 1.0, 1.0, 1.0)
    assert (found.finite, found.output, found.sizes) == (True, "y", {"B": 2})


def test_the_worst_row_counts_and_top1_is_a_share() -> None:
    found = of([[1.0, 0.0], [0.0, 1.0], [5.0, 0.0]], [[1.0, 0.0], [1.0, 0.0], [5.0, 0.0]])
    assert found.rel_l2 == pytest.approx(np.sqrt(2))
    assert found.cosine == 0
    assert found.top1_agreement == pytest.approx(2 / 3)


@given(matrices)
def test_what_is_equal_is_off_by_nothing(array: np.ndarray) -> None:
    found = of(array, array.copy())
    assert (found.rel_l2, found.max_abs) == (0, 0)
    assert found.cosine == pytest.approx(1)


@given(matrices, st.data())
def test_any_difference_is_seen(array: np.ndarray, data: st.DataObject) -> None:
    place = tuple(data.draw(st.integers(0, size - 1)) for size in array.shape)
    other = array.copy()
    other[place] = data.draw(numbers.filter(lambda n: n != array[place]))
    found = of(array, other)
    assert found.rel_l2 is not None
    assert found.rel_l2 > 0
    assert found.max_abs is not None
    assert found.max_abs > 0


@given(matrices, st.floats(2**-10, 2**10))
def test_relative_figures_do_not_depend_on_scale(array: np.ndarray, factor: float) -> None:
    other = array + np.float32(0.5)
    one, two = of(array, other), of(array * np.float64(factor), other * np.float64(factor))
    assert one.rel_l2 == pytest.approx(two.rel_l2, rel=1e-6)
    assert one.cosine == pytest.approx(two.cosine, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("which", ["reference", "actual", "both"])
def test_a_number_that_is_none_on_either_side_is_never_a_figure(bad: float, which: str) -> None:
    good, wrong = np.ones((2, 2), np.float16), np.array([[1, 1], [1, bad]], np.float16)
    found = of(wrong if which != "actual" else good, wrong if which != "reference" else good)
    assert (found.finite, found.rel_l2, found.cosine, found.max_abs, found.top1_agreement) == (False, *[None] * 4)
    assert worst([of(good, good), found]) is None


@pytest.mark.parametrize("shape", [(2, 3), (3, 2), (2, 2, 1), (4,)])
def test_another_shape_is_as_wrong_as_can_be(shape: tuple[int, ...]) -> None:
    assert of(np.ones((2, 2)), np.ones(shape)).rel_l2 == HUGE


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0,)])
def test_nothing_is_off_by_nothing(shape: tuple[int, ...]) -> None:
    assert of(np.ones(shape), np.ones(shape)).rel_l2 == 0


def test_something_where_nothing_should_be_is_without_measure_and_fits_into_json() -> None:
    for size in (1.0, 1e-30, 1.4e-45):  # the last is float32's smallest number
        found = of(np.array([[0.0, 0.0], [1.0, 1.0]]), np.array([[0.0, size], [1.0, 1.0]]))
        assert found.rel_l2 == HUGE
        assert from_json(to_json(found), Measure, what="a measure") == found
    assert of(np.full((1, 2), 1.4e-45), np.full((1, 2), 3e38)).rel_l2 < HUGE
    assert of(np.zeros((1, 2)), np.zeros((1, 2))).cosine == 1


@pytest.mark.parametrize("dtype", ["int64", "bool", "float16", "uint8"])
def test_every_kind_of_number_is_compared(dtype: str) -> None:
    one, two = np.array([[1, 0], [1, 1]]).astype(dtype), np.array([[1, 0], [0, 1]]).astype(dtype)
    assert of(one, one).rel_l2 == 0
    assert of(one, two).rel_l2 == pytest.approx(np.sqrt(0.5))


def test_single_numbers_and_vectors_have_no_classes() -> None:
    assert of(np.float32(2), np.float32(1)).rel_l2 == 0.5
    assert of(np.ones(3), np.ones(3)).top1_agreement is None
    assert of(np.ones((3, 1)), np.ones((3, 1))).top1_agreement is None


def test_the_worst_of_several() -> None:
    assert worst([of([[2.0]], [[1.0]]), of([[2.0]], [[2.0]])]) == 0.5
    assert worst([]) is None


SPECS = (
    TensorSpec(name="x", shape=("B", 3, "L")),
    TensorSpec(name="ids", shape=("B", "L"), dtype="int64"),
    TensorSpec(name="mask", shape=("B",), dtype="bool"),
    TensorSpec(name="half", shape=(2,), dtype="float16"),
)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 5))
def test_random_inputs_fit_their_specs_and_do_not_change(batch: int, length: int, seed: int) -> None:
    feeds = random_inputs(SPECS, {"B": batch, "L": length}, seed=seed)
    assert {n: (a.shape, str(a.dtype)) for n, a in feeds.items()} == {
        "x": ((batch, 3, length), "float32"),
        "ids": ((batch, length), "int64"),
        "mask": ((batch,), "bool"),
        "half": ((2,), "float16"),
    }
    assert set(np.unique(feeds["ids"])) <= {0, 1}
    again = random_inputs(SPECS, {"B": batch, "L": length}, seed=seed)
    assert all(np.array_equal(feeds[name], again[name]) for name in feeds)


@given(st.integers(1, 8), st.integers(1, 8))
def test_a_smaller_batch_is_the_start_of_a_larger_one(one: int, two: int) -> None:
    few, many = (random_inputs(SPECS, {"B": b, "L": 4}) for b in sorted((one, two)))
    for name in ("x", "ids", "mask"):
        np.testing.assert_array_equal(few[name], many[name][: len(few[name])])
