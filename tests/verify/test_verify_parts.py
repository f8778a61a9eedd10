"""Comparing, evaluating, and matching class folders, each by itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployed import BLUE, GREEN, RED, paint
from trtship.errors import BundleError, ImageError, InputError
from trtship.preprocess import Preprocess, Rescale, Resize
from trtship.session.base import Array, Session
from trtship.spec import ShapeRange, TensorSpec
from trtship.verify import Bound, Picture, Reference, compare, evaluate
from trtship.verify.evaluate import predictions
from trtship.verify.folder import labelled_pictures
from trtship.verify.reference import ROWS, make_reference

INPUTS = (TensorSpec(name="x", shape=("B", 3)),)
OUTPUTS = (TensorSpec(name="y", shape=("B", 3)),)
BOUND = Bound(value=1e-3, source="test")


class Doubled(Session):
    """y = 2 x, with a fault where one is wanted; remembers the batches that it ran."""

    def __init__(self, inputs: tuple[TensorSpec, ...] = INPUTS, fault: Any = lambda y: y) -> None:
        self.inputs, self.outputs, self.runtime = inputs, OUTPUTS, "numpy"
        self.fault, self.batches = fault, []  # type: ignore[var-annotated]

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        self.batches.append(len(feeds["x"]))
        return {"y": self.fault(2 * feeds["x"].astype(np.float32))}


REFERENCE = make_reference(Doubled(), sizes={})


def test_what_is_the_same_passes_at_every_batch() -> None:
    session = Doubled()
    verdict = compare(session, REFERENCE, subject="s", batches=(1, 4, 20), bound=BOUND)
    assert (verdict.state, verdict.reason, verdict.worst) == ("passed", "", 0.0)
    assert session.batches == [m.sizes["B"] for m in verdict.measures] == [1, 4, 20]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_number_that_is_none_fails(bad: float) -> None:
    def fault(y: Any) -> Any:
        if len(y) == 20:
            y[-1, -1] = bad
        return y

    verdict = compare(Doubled(fault=fault), REFERENCE, subject="s", batches=(1, 20), bound=BOUND)
    assert (verdict.state, verdict.worst) == ("failed", None)
    assert verdict.reason == "NaN or Inf in y at B=20"


def test_a_reference_that_is_no_number_passes_nothing() -> None:
    outputs = {"y": REFERENCE.outputs["y"].copy()}
    outputs["y"][0] = np.nan
    reference = Reference("B", {}, REFERENCE.inputs, outputs)
    assert compare(Doubled(), reference, subject="s", batches=(1,), bound=BOUND).state == "failed"


def test_one_wrong_row_of_many_fails_and_is_named() -> None:
    """The worst row decides: over all rows together this error would be below the bound."""

    def fault(y: Any) -> Any:
        y[7 % len(y)] *= 1.01
        return y

    verdict = compare(Doubled(fault=fault), REFERENCE, subject="s", batches=(1000,), bound=BOUND)
    assert verdict.state == "failed"
    assert verdict.worst == pytest.approx(0.01, rel=1e-4)
    assert "at B=1000" in verdict.reason


def test_rows_that_changed_places_fail() -> None:
    verdict = compare(Doubled(fault=lambda y: y[::-1]), REFERENCE, subject="s", batches=(1, 2), bound=BOUND)
    assert verdict.state == "failed"
    assert "at B=2" in verdict.reason


@pytest.mark.parametrize("fault", [lambda y: y[:, :2], lambda y: y[:-1], lambda y: y[None]])
def test_another_shape_fails(fault: Any) -> None:
    assert compare(Doubled(fault=fault), REFERENCE, subject="s", batches=(2,), bound=BOUND).state == "failed"


def test_a_session_that_raises_fails() -> None:
    def fault(_: Any) -> Any:
        raise InputError("not this one", why="broken")

    verdict = compare(Doubled(fault=fault), REFERENCE, subject="s", batches=(1,), bound=BOUND)
    assert (verdict.state, verdict.measures) == ("failed", ())
    assert "not this one (broken)" in verdict.reason


def test_half_precision_inputs_are_fed_as_the_session_takes_them() -> None:
    session = Doubled(inputs=(TensorSpec(name="x", shape=("B", 3), dtype="float16"),))
    assert compare(session, REFERENCE, subject="s", batches=(1,), bound=BOUND).state == "passed"


@given(st.integers(1, 300))
def test_a_batch_of_any_size_is_made_of_reference_rows_each_with_its_own_output(size: int) -> None:
    inputs, outputs = REFERENCE.at(size)
    assert inputs["x"].shape == outputs["y"].shape == (size, 3)
    np.testing.assert_array_equal(outputs["y"], 2 * inputs["x"])
    known = {row.tobytes() for row in REFERENCE.inputs["x"]}
    used = [row.tobytes() for row in inputs["x"]]
    assert set(used) <= known
    assert len(set(used)) == min(size, ROWS)
    for tile in (8, 16, 32):  # a kernel that gives every tile the first one's rows is caught
        if size >= 2 * tile:
            assert used[:tile] != used[tile : 2 * tile]


def test_a_reference_reads_back_as_it_was_saved(tmp_path: Path) -> None:
    reference = make_reference(Doubled(), sizes={}, pictures=np.ones((20, 3), np.float32))
    assert (reference.inputs["x"][: ROWS // 2 + 1] == 1).all()
    assert not (reference.inputs["x"][ROWS // 2 + 1 :] == 1).any()
    reference.save(tmp_path)
    read = Reference.read(lambda name: (tmp_path / name).read_bytes(), inputs=INPUTS, outputs=OUTPUTS, sizes={})
    assert read.batch == "B"
    np.testing.assert_array_equal(read.outputs["y"], reference.outputs["y"])


def test_reference_files_are_never_unpickled(tmp_path: Path) -> None:
    REFERENCE.save(tmp_path)
    np.save(tmp_path / "input-0.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(BundleError, match="cannot be read"):
        Reference.read(lambda name: (tmp_path / name).read_bytes(), inputs=INPUTS, outputs=OUTPUTS, sizes={})


@given(st.lists(st.integers(1, 10_000), min_size=3, max_size=3).map(sorted))
def test_the_batches_checked_are_min_opt_max_their_neighbours_and_an_odd_one_between(numbers: list[int]) -> None:
    low, opt, high = numbers
    sizes = ShapeRange(min=low, opt=opt, max=high).sizes_to_check
    assert {low, opt, high} <= set(sizes) <= set(range(low, high + 1))
    assert len(sizes) <= 7
    assert {min(low + 1, high), max(high - 1, low)} <= set(sizes)
    assert list(sizes) == sorted(set(sizes))
    if high - low >= 2:
        assert any(low < n < high and n % 2 for n in sizes) or high - low == 2


def test_top1_and_its_drop_by_hand() -> None:
    """Of five: the original has 0, 1, 1, 2 right (80 %); the subject 0, 1, 2 (60 %); they agree on three."""
    found = evaluate([0, 1, 1, 2, 0], [0, 1, 0, 2, 1], [0, 1, 1, 2, 2])
    assert (found.pictures, found.top1_original, found.top1) == (5, 80.0, 60.0)
    assert (found.drop, found.agreement) == (20.0, 60.0)


PREPROCESS = Preprocess(
    mode="RGB",
    exif_transpose=False,
    steps=(Resize(height=1, width=1, fit="exact", interpolation="bilinear"), Rescale(factor=1 / 255)),
)


class Channels(Doubled):
    """The logits are the picture's channels."""

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        self.batches.append(len(feeds["x"]))
        return {"y": self.fault(feeds["x"][:, :, 0, 0])}


IMAGES = (TensorSpec(name="x", shape=("B", 3, 1, 1)),)


@pytest.mark.parametrize(("fixed", "batches"), [(False, [2, 2, 1]), (True, [2, 2, 2])])
def test_predictions_come_in_the_pictures_order_in_batches(fixed: bool, batches: list[int], tmp_path: Path) -> None:
    folder = paint(tmp_path / "p", {"a": [RED, BLUE, GREEN, BLUE, RED]})
    pictures = [Picture(folder / "a" / f"{i}.png", 0) for i in range(5)]
    session = Channels(inputs=IMAGES)
    assert predictions(session, pictures, PREPROCESS, batch=2, fixed=fixed).tolist() == [0, 2, 1, 2, 0]
    assert session.batches == batches


def test_a_picture_that_gives_nan_is_of_no_class(tmp_path: Path) -> None:
    folder = paint(tmp_path / "p", {"a": [RED, BLUE]})
    session = Channels(inputs=IMAGES, fault=lambda y: np.where(y[:, :1] > 0.5, np.nan, y))
    pictures = [Picture(folder / "a" / f"{i}.png", 0) for i in range(2)]
    assert predictions(session, pictures, PREPROCESS, batch=2).tolist() == [-1, 2]


def folders(tmp_path: Path, *names: str) -> Path:
    return paint(tmp_path / "p", {name: [RED] for name in names})


@pytest.mark.parametrize(
    ("names", "labels", "classes", "expected"),
    [
        (["cat", "owl"], ["owl", "dog", "cat"], 3, {"cat": 2, "owl": 0}),  # labels, some of them
        (["1", "0"], ["1", "0"], 2, {"1": 0, "0": 1}),  # labels before indices
        (["0", "7"], None, 10, {"0": 0, "7": 7}),  # indices, some of them
        (["0", "7"], None, None, {"0": 0, "7": 7}),
        (["07", "00"], None, 10, {"00": 0, "07": 7}),
        (["b", "a", "c"], None, 3, {"a": 0, "b": 1, "c": 2}),  # one a class, sorted
        (["n02", "n01"], ["tench", "goldfish"], 2, {"n01": 0, "n02": 1}),
        ([str(i) for i in range(10)], None, 10, {str(i): i for i in range(10)}),
        ([f"{i:02}" for i in range(11)], None, 11, {f"{i:02}": i for i in range(11)}),
    ],
)
def test_folders_are_matched(
    names: list[str], labels: list[str] | None, classes: int | None, expected: dict[str, int], tmp_path: Path
) -> None:
    found = labelled_pictures(folders(tmp_path, *names), labels=labels, classes=classes)
    assert {p.path.parent.name: p.target for p in found} == expected


@pytest.mark.parametrize(
    ("names", "labels", "classes", "match"),
    [
        (["a", "b"], None, 3, "neither labels, nor class indices, nor one for each class"),
        (["a", "b"], None, None, "neither"),
        (["0", "3"], None, 3, "neither"),
        (["cat", "dgo"], ["cat", "dog"], 2, r"1 are not \(the first is 'dgo'\)"),
        ([str(i) for i in range(11)], None, 11, "one class as indices and another in sorted order"),
        (["1", "01"], None, 5, "neither"),
        (["a", "b"], ["a", "a", "b"], 3, "neither"),
    ],
)
def test_folders_that_cannot_be_matched_are_refused(
    names: list[str], labels: list[str] | None, classes: int | None, match: str, tmp_path: Path
) -> None:
    with pytest.raises(ImageError, match=match):
        labelled_pictures(folders(tmp_path, *names), labels=labels, classes=classes)
