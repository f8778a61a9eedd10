"""What a reference holds beside its rows at the usual sizes: rows at other sizes, and rows that the user gave."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trtship.errors import BundleError, SpecError
from trtship.input_files import Samples
from trtship.input_values import InputDomain
from trtship.session.base import Array, Session
from trtship.spec import ShapeRange, TensorSpec
from trtship.verify import Reference
from trtship.verify import reference as module
from trtship.verify.reference import GIVEN_ROWS, GIVEN_SIZES, ROWS, ROWS_ELSEWHERE, make_reference

INPUTS = (TensorSpec(name="x", shape=("B", 2, "H", "W")),)
OUTPUTS = (TensorSpec(name="y", shape=("B", 2, "H", "W")),)
RANGES = {
    "B": ShapeRange(min=1, opt=2, max=8),
    "H": ShapeRange(min=4, opt=8, max=20),
    "W": ShapeRange(min=2, opt=8, max=16),
}
USUAL = {"H": 8, "W": 8}


class Doubled(Session):
    """y = 2 x; refuses what `fails` says."""

    def __init__(self, fails: Any = lambda shape: False, inputs: tuple[TensorSpec, ...] = INPUTS) -> None:
        self.inputs, self.outputs, self.runtime = inputs, OUTPUTS, "numpy"
        self.fails, self.batches = fails, []  # type: ignore[var-annotated]

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        x = feeds["x"]
        self.batches.append(len(x))
        if self.fails(x.shape):
            raise AssertionError("the height must be a multiple of the window")
        return {"y": 2 * x.astype(np.float32)}


def made(session: Session | None = None, **options: Any) -> Reference:
    return make_reference(session or Doubled(), sizes=USUAL, ranges=RANGES, **options)


def test_there_are_few_rows_at_each_of_the_other_sizes_the_largest_first() -> None:
    reference = made()
    assert reference.sizes == USUAL
    assert reference.rows == ROWS
    assert len(reference.others) == 15
    assert reference.others[0].sizes == {"H": 20, "W": 16}
    assert {"H": 8, "W": 3} in [other.sizes for other in reference.others]
    for other in reference.others:
        assert other.inputs["x"].shape == (ROWS_ELSEWHERE, 2, other.sizes["H"], other.sizes["W"])
        np.testing.assert_array_equal(other.outputs["y"], 2 * other.inputs["x"])
    assert reference.untried == ()
    assert {other.edges.names for other in reference.others if other.edges} == {("extremes", "max", "min")}
    assert reference.cases[0].others == ()


def test_no_row_is_that_of_another_size() -> None:
    rows = [row[:2, :2].tobytes() for case in made().cases for row in case.inputs["x"][:, 0]]
    assert len(set(rows)) == len(rows)


def test_it_reads_back_as_it_was_saved(tmp_path: Path) -> None:
    wide = Doubled()
    wide.outputs = tuple(TensorSpec(name=s.name, shape=s.shape, dtype="float64") for s in OUTPUTS)
    reference = made(exact=wide)
    reference.save(tmp_path)

    def read(sizes: dict[str, int] | None) -> Reference:
        return Reference.read(
            lambda name: (tmp_path / name).read_bytes(),
            inputs=INPUTS,
            outputs=OUTPUTS,
            sizes=sizes,
            has=lambda name: (tmp_path / name).exists(),
        )

    for found in (read(USUAL), read(None)):
        assert found.sizes == USUAL
        assert [other.sizes for other in found.others] == [other.sizes for other in reference.others]
        for one, other in zip(found.cases, reference.cases, strict=True):
            np.testing.assert_array_equal(one.inputs["x"], other.inputs["x"])
            assert one.exact is not None
            assert (one.edges is None) is (other.edges is None)
    (tmp_path / "sizes.json").write_text('{"sizes": [{"Z": 3}]}')
    with pytest.raises(BundleError, match="cannot be read"):
        read(None)


def test_a_bundle_of_before_has_no_other_sizes(tmp_path: Path) -> None:
    make_reference(Doubled(), sizes=USUAL).save(tmp_path)
    read = Reference.read(
        lambda name: (tmp_path / name).read_bytes(),
        inputs=INPUTS,
        outputs=OUTPUTS,
        sizes=USUAL,
        has=lambda name: (tmp_path / name).exists(),
    )
    assert (read.others, read.untried) == ((), ())
    assert not (tmp_path / "sizes.json").exists()


def bytes_of(reference: Reference) -> int:
    edges = [other.edges for other in reference.others if other.edges is not None]
    return sum(a.nbytes for one in (*reference.others, *edges) for a in (one.inputs["x"], one.outputs["y"]))


@pytest.mark.parametrize(("budget", "rows"), [(100_000, 3), (70_000, 2), (40_000, 1), (1, 1)])
def test_there_are_as_many_rows_at_each_size_as_fit_and_at_least_one(
    budget: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BUDGET", budget)
    reference = made(exact=None)
    assert (len(reference.others), reference.untried) == (15, ())
    assert {other.rows for other in reference.others} == {rows}
    assert bytes_of(reference) <= budget or rows == 1


@pytest.mark.parametrize("most", [30_000, 5_000, 1])
def test_what_has_no_room_is_left_out_and_listed_but_never_the_largest_sizes(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BUDGET", 1)
    monkeypatch.setattr(module, "MOST", most)
    reference = made()
    assert reference.others[0].sizes == {"H": 20, "W": 16}
    assert reference.others[0].edges is not None
    assert reference.others[0].edges.names == ("extremes",)
    assert len(reference.others) + len(reference.untried) == 15
    assert bytes_of(reference) <= most or len(reference.others) == 1
    assert all("MiB" in one.reason for one in reference.untried)
    assert reference.untried


def test_outputs_in_float64_are_the_first_to_be_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(other.exact is not None for other in made(exact=Doubled()).others)
    monkeypatch.setattr(module, "BUDGET", 30_000)
    reference = made(exact=Doubled())
    assert reference.exact is not None
    assert {other.exact for other in reference.others} == {None}


def test_sizes_inside_the_range_at_which_the_model_itself_fails_are_listed_with_what_it_says() -> None:
    reference = made(Doubled(fails=lambda shape: shape[2] % 4))
    assert [one.sizes for one in reference.untried] == [
        {"H": 5, "W": 3},
        {"H": 19, "W": 15},
        {"H": 13, "W": 9},
        {"H": 5, "W": 8},
        {"H": 19, "W": 8},
        {"H": 13, "W": 8},
    ]
    assert "AssertionError: the height must be a multiple" in reference.untried[0].reason


@pytest.mark.parametrize(("end", "size"), [("MAX", 20), ("MIN", 4)])
def test_a_model_that_fails_at_the_end_of_its_range_is_told_at_once(end: str, size: int) -> None:
    with pytest.raises(SpecError, match=f"fails at H={size}, W=[0-9]+, the {end}"):
        made(Doubled(fails=lambda shape: shape[2] == size))


def test_what_the_models_rules_refuse_is_never_run_at_any_batch() -> None:
    def allowed(sizes: Mapping[str, int]) -> bool:
        return sizes["H"] % 4 == 0 and sizes["B"] % 2 == 0

    session = Doubled(fails=lambda shape: shape[2] % 4 or shape[0] % 2)
    reference = made(session, allowed=allowed)
    assert reference.untried == ()
    assert reference.rows == ROWS
    assert {other.sizes["H"] for other in reference.others} == {4, 8, 16, 20}
    np.testing.assert_array_equal(reference.outputs["y"], 2 * reference.inputs["x"])
    assert set(session.batches) == {2}  # seven edge rows, or nine rows, at once are not allowed


def given(*groups: Any) -> Samples:
    return Samples(tuple({"x": np.asarray(group, np.float32)} for group in groups), origin="test", digest="0")


def test_the_users_rows_are_spread_over_what_was_given_and_invented_rows_remain() -> None:
    own = np.arange(100, dtype=np.float32)[:, None, None, None] + np.zeros((100, 2, 8, 8), np.float32)
    x = made(samples=given(own[:50], own[50:])).inputs["x"]
    assert x[:GIVEN_ROWS, 0, 0, 0].tolist() == [0, 19, 39, 59, 79, 99]
    assert len({row.tobytes() for row in x}) == ROWS


def test_the_users_rows_of_another_size_are_rows_there() -> None:
    large, between = np.full((5, 2, 20, 16), 7.0), np.full((2, 2, 6, 10), 3.0)
    reference = made(samples=given(large, between))
    assert reference.others[0].inputs["x"].tolist() == large[:ROWS_ELSEWHERE].tolist()
    assert reference.others[1].sizes == {"H": 6, "W": 10}
    assert reference.others[1].inputs["x"][:2].tolist() == between.tolist()
    assert len(reference.others) == 16


def test_of_very_many_sizes_some_are_kept_and_the_others_are_listed() -> None:
    groups = [np.zeros((1, 2, h, w)) for h in (6, 7, 9, 10, 11) for w in (5, 6, 7)]
    reference = made(samples=given(*groups))
    assert len(reference.others) == 15 + GIVEN_SIZES
    assert len(reference.untried) == len(groups) - GIVEN_SIZES
    assert str(GIVEN_SIZES) in reference.untried[0].reason


def test_the_users_rows_beyond_the_range_are_the_users_mistake() -> None:
    with pytest.raises(SpecError, match="H=40, W=8 cannot be used") as caught:
        made(samples=given(np.zeros((1, 2, 40, 8))))
    assert "widen --size H" in caught.value.do
    with pytest.raises(SpecError, match="H=5, W=8 cannot be used"):
        made(samples=given(np.zeros((1, 2, 5, 8))), allowed=lambda sizes: sizes["H"] != 5)


def test_a_fixed_batch_of_one_is_run_on_several_of_the_users_rows() -> None:
    inputs = (TensorSpec(name="x", shape=(1, 2, 8, 8)),)
    own = np.arange(20, dtype=np.float32)[:, None, None, None] + np.zeros((20, 2, 8, 8), np.float32)
    reference = make_reference(Doubled(inputs=inputs), sizes={}, ranges={}, samples=given(own))
    assert [float(case.inputs["x"][0, 0, 0, 0]) for case in reference.cases] == [0, 3, 7, 11, 15, 19]
    assert all(case.rows == 1 for case in reference.cases)


def test_edge_rows_reach_over_the_domain_at_their_sizes() -> None:
    inputs = (TensorSpec(name="x", shape=("B", "L"), dtype="int64"),)
    session = Doubled(inputs=inputs)
    session.outputs = (TensorSpec(name="y", shape=("B", "L")),)
    domain = InputDomain(kind="uniform", low=0, high=3, origin="positions", size="L", offset=-1)
    ranges = {"B": RANGES["B"], "L": ShapeRange(min=4, opt=6, max=40)}
    reference = make_reference(session, sizes={"L": 6}, ranges=ranges, domains={"x": domain})
    largest = [(case.sizes["L"], case.edges.inputs["x"].max()) for case in reference.cases if case.edges is not None]
    assert largest == [(6, 5), (40, 39), (4, 3)]
