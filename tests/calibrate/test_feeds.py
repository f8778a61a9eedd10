"""What a graph is calibrated on: pictures in any layout, or arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trtship.calibrate import feeds_of_arrays, feeds_of_folder
from trtship.calibrate.feeds import BATCH, digest_of_feeds
from trtship.errors import ImageError, InputError
from trtship.preprocess import Preprocess, Rescale, Resize
from trtship.spec import TensorSpec

ONE = (TensorSpec(name="x", shape=("B", 1, 4, 4)),)
RESIZE = Resize(height=4, width=4, fit="exact", interpolation="bilinear")
GREY = Preprocess(mode="L", exif_transpose=False, steps=(RESIZE, Rescale(factor=1.0)))
PLAIN = (TensorSpec(name="a", shape=("B", 2)), TensorSpec(name="b", shape=("B",), dtype="int64"))


def paint(folder: Path, levels: range) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for level in levels:
        Image.new("L", (4, 4), level).save(folder / f"{level:03d}.png")


def levels_of(batches: list[dict[str, np.ndarray]]) -> list[int]:
    return [int(row[0, 0, 0]) for batch in batches for row in batch["x"]]


def test_pictures_count_in_class_folders_and_beside_them(tmp_path: Path) -> None:
    paint(tmp_path, range(3))
    paint(tmp_path / "cat" / "more", range(3, 9))
    (tmp_path / "notes.txt").write_text("no picture")
    feeds = feeds_of_folder(tmp_path, ONE, GREY)
    batches = [dict(batch) for batch in feeds]
    assert feeds.rows == 9
    assert sorted(levels_of(batches)) == list(range(9))
    assert max(len(batch["x"]) for batch in batches) == BATCH


def test_a_large_folder_is_used_from_its_first_to_its_last_picture(tmp_path: Path) -> None:
    paint(tmp_path, range(100))
    feeds = feeds_of_folder(tmp_path, ONE, GREY, most=10)
    found = levels_of([dict(batch) for batch in feeds])
    assert feeds.rows == len(found) == 10
    assert found[0] == 0
    assert found[-1] == 99
    assert max(np.diff(found)) <= 12


def test_a_fixed_batch_is_filled_with_the_last_picture(tmp_path: Path) -> None:
    paint(tmp_path, range(5))
    feeds = feeds_of_folder(tmp_path, (TensorSpec(name="x", shape=(3, 1, 4, 4)),), GREY)
    assert feeds.rows == 5
    assert levels_of([dict(batch) for batch in feeds]) == [0, 1, 2, 3, 4, 4]


def test_arrays_by_input_feed_a_model_without_preprocessing(tmp_path: Path) -> None:
    a, b = np.arange(12.0).reshape(6, 2), np.arange(6)
    np.save(tmp_path / "a.npy", a)
    np.save(tmp_path / "b.npy", b)
    batches = [dict(batch) for batch in feeds_of_folder(tmp_path, PLAIN, None)]
    assert [batch["a"].dtype.name for batch in batches] == ["float32"] * 2
    assert np.array_equal(np.concatenate([batch["a"] for batch in batches]), a)
    assert np.array_equal(np.concatenate([batch["b"] for batch in batches]), b)


def test_one_file_of_any_name_feeds_one_input(tmp_path: Path) -> None:
    np.save(tmp_path / "whatever.npy", np.ones((2, 1, 4, 4), np.float32))
    assert feeds_of_folder(tmp_path, ONE, None).rows == 2


@pytest.mark.parametrize("missing", ["folder", "pictures", "arrays", "input"])
def test_what_is_missing_is_said(tmp_path: Path, missing: str) -> None:
    if missing == "folder":
        with pytest.raises(ImageError, match="no folder"):
            feeds_of_folder(tmp_path / "nowhere", ONE, GREY)
    elif missing == "pictures":
        (tmp_path / "readme.txt").write_text("")
        with pytest.raises(ImageError, match="holds no picture"):
            feeds_of_folder(tmp_path, ONE, GREY)
    elif missing == "arrays":
        with pytest.raises(InputError, match="holds no arrays"):
            feeds_of_folder(tmp_path, ONE, None)
    else:
        np.save(tmp_path / "a.npy", np.zeros((2, 2)))
        with pytest.raises(InputError, match=r"b\.npy"):
            feeds_of_folder(tmp_path, PLAIN, None)


def test_inputs_of_unlike_lengths_are_refused() -> None:
    with pytest.raises(InputError, match="does not fit"):
        feeds_of_arrays({"a": np.zeros((3, 2)), "b": np.zeros(2, np.int64)}, PLAIN, source="rows")


def test_pickled_arrays_are_never_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="cannot read"):
        feeds_of_folder(tmp_path, ONE, None)


def test_the_digest_follows_content_and_names(tmp_path: Path) -> None:
    paint(tmp_path, range(3))
    first = digest_of_feeds(tmp_path)
    assert digest_of_feeds(tmp_path) == first
    Image.new("L", (4, 4), 77).save(tmp_path / "000.png")
    second = digest_of_feeds(tmp_path)
    (tmp_path / "000.png").rename(tmp_path / "zero.png")
    assert len({first, second, digest_of_feeds(tmp_path)}) == 3
