"""Real inputs from files and from arrays: each kind, what does not fit, and what is hostile."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

from trtship.errors import InputError
from trtship.input_files import ArraySource, FileSource, Samples, source_of
from trtship.input_samples import MAX_ROWS
from trtship.preprocess import CenterCrop, Preprocess, Rescale
from trtship.spec import ShapeRange, TensorSpec

IDS = TensorSpec(name="ids", shape=("B", "L"), dtype="int64")
MASK = TensorSpec(name="mask", shape=("B", "L"), dtype="float32")
TWO = (IDS, MASK)
RANGES = {"L": ShapeRange(min=2, opt=4, max=8)}
ROWS = {"ids": np.arange(12).reshape(3, 4), "mask": np.ones((3, 4), np.float32)}


def read(*paths: Path, inputs: tuple[TensorSpec, ...] = TWO, preprocess: Preprocess | None = None) -> Samples:
    return FileSource(paths).read(inputs, ranges=RANGES, preprocess=preprocess)


def npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def refused(*paths: Path, inputs: tuple[TensorSpec, ...] = TWO) -> str:
    with pytest.raises(InputError) as caught:
        read(*paths, inputs=inputs)
    assert caught.value.why
    assert caught.value.do
    return str(caught.value)


def same(found: Samples, wanted: dict[str, Any] = ROWS) -> None:
    (group,) = found.groups
    assert {name: (a.dtype, a.tolist()) for name, a in group.items()} == {
        name: (a.dtype, a.tolist()) for name, a in wanted.items()
    }


def test_an_npz_file_compressed_or_not(tmp_path: Path) -> None:
    found = read(npz(tmp_path / "a.npz", **ROWS))
    same(found)
    assert (found.origin, found.rows) == ("3 rows of a.npz", 3)
    np.savez_compressed(tmp_path / "b.npz", **ROWS)
    same(read(tmp_path / "b.npz"))
    assert FileSource([tmp_path / "a.npz"]).digest() != FileSource([tmp_path / "b.npz"]).digest()


def test_a_safetensors_file(tmp_path: Path) -> None:
    save_file(ROWS, tmp_path / "a.safetensors")
    same(read(tmp_path / "a.safetensors"))


def test_a_folder_of_npy_files(tmp_path: Path) -> None:
    for name, array in ROWS.items():
        np.save(tmp_path / f"{name}.npy", array)
    same(read(tmp_path))


def test_one_npy_file_of_any_name_for_one_input(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", ROWS["ids"])
    for path in (tmp_path, tmp_path / "x.npy"):
        same(read(path, inputs=(IDS,)), {"ids": ROWS["ids"]})


def test_folders_of_samples_with_sizes_of_their_own(tmp_path: Path) -> None:
    for place, length in enumerate((3, 5, 3)):
        (tmp_path / f"{place}").mkdir()
        np.save(tmp_path / f"{place}" / "ids.npy", np.full((1, length), place))
        np.save(tmp_path / f"{place}" / "mask.npy", np.ones((1, length), np.float32))
    found = read(tmp_path)
    assert [group["ids"].tolist() for group in found.groups] == [[[0] * 3, [2] * 3], [[1] * 5]]


def test_files_are_repeated_and_named(tmp_path: Path) -> None:
    short = {name: array[:1, :2] for name, array in ROWS.items()}
    found = read(npz(tmp_path / "a.npz", **ROWS), npz(tmp_path / "b.npz", **short))
    assert [len(group["ids"]) for group in found.groups] == [3, 1]
    assert found.origin == "3 rows of a.npz, 1 row of b.npz"


def test_a_folder_of_pictures_where_the_preprocessing_is_known(tmp_path: Path) -> None:
    steps = (CenterCrop(height=4, width=4), Rescale(factor=1 / 255))
    preprocess = Preprocess(mode="RGB", exif_transpose=False, steps=steps)
    (tmp_path / "cats").mkdir()
    for place in range(3):
        Image.new("RGB", (6, 5), (255, 0, 51 * place)).save(tmp_path / "cats" / f"{place}.png")
    inputs = (TensorSpec(name="x", shape=("B", 3, 4, 4)),)
    (group,) = read(tmp_path, inputs=inputs, preprocess=preprocess).groups
    np.testing.assert_allclose(group["x"][:, :, 0, 0], [[1, 0, 0], [1, 0, 0.2], [1, 0, 0.4]], rtol=1e-6)
    assert "tells no preprocessing" in refused(tmp_path, inputs=inputs)


def test_of_many_rows_a_stated_number_is_read_spread_over_the_file(tmp_path: Path) -> None:
    many = np.arange(10 * MAX_ROWS).reshape(-1, 2)
    for path in (npz(tmp_path / "a.npz", ids=many), tmp_path / "ids.npy"):
        np.save(tmp_path / "ids.npy", many)
        found = read(path, inputs=(IDS,))
        chosen = found.groups[0]["ids"]
        assert len(chosen) == MAX_ROWS
        assert chosen[0, 0] == 0
        assert chosen[-1, -1] == many[-1, -1]
        assert found.origin.startswith(f"{MAX_ROWS} of {len(many)} rows of ")


def test_a_fixed_batch_is_read_in_whole_batches(tmp_path: Path) -> None:
    fixed = (TensorSpec(name="x", shape=(3, 2)),)
    rows = np.arange(3 * 400 * 2, dtype=np.float32).reshape(-1, 2)
    found = read(npz(tmp_path / "a.npz", x=rows), inputs=fixed).groups[0]["x"]
    assert len(found) % 3 == 0
    assert (np.diff(found.reshape(-1, 6), axis=1) == 1).all()
    assert "not a multiple" in refused(npz(tmp_path / "b.npz", x=rows[:4]), inputs=fixed)


def test_an_input_without_a_batch_is_whole(tmp_path: Path) -> None:
    inputs = (TensorSpec(name="x", shape=("B", 2)), TensorSpec(name="scale", shape=(3,)))
    arrays = {"x": np.ones((5, 2), np.float32), "scale": np.arange(3, dtype=np.float32)}
    same(read(npz(tmp_path / "a.npz", **arrays), inputs=inputs), arrays)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a name is missing": ({"ids": ROWS["ids"]}, "it has no mask"),
    "a name is unknown": ({**ROWS, "more": ROWS["ids"]}, "the model has no input more"),
    "another dtype": ({**ROWS, "ids": ROWS["ids"].astype(np.int32)}, 'array.astype("int64")'),
    "the other byte order": ({**ROWS, "ids": ROWS["ids"].astype(">i8")}, 'array.astype("int64")'),
    "no rows": ({"ids": np.zeros((0, 4), np.int64), "mask": np.zeros((0, 4), np.float32)}, "it has no rows"),
    "no dimension of rows": ({**ROWS, "ids": ROWS["ids"][0]}, "array[None]"),
    "a dimension too many": ({**ROWS, "ids": ROWS["ids"][None]}, "it has 3 dimensions where the input has 2"),
    "sizes that differ": ({**ROWS, "mask": ROWS["mask"][:, :3]}, "L is 3 here and 4 in ids"),
    "rows that differ": ({**ROWS, "mask": ROWS["mask"][:2]}, "different numbers of rows"),
    "a size out of range": ({n: np.tile(a, (1, 3)) for n, a in ROWS.items()}, "outside the range 2:4:8"),
    "NaN": ({**ROWS, "mask": np.array([[1] * 4, [1] * 4, [1, 1, np.nan, 1]], np.float32)}, "NaN or Inf in row 2"),
    "Inf": ({**ROWS, "mask": np.array([[1] * 4, [1, 1, np.inf, 1], [1] * 4], np.float32)}, "NaN or Inf in row 1"),
    "text": ({**ROWS, "ids": np.array([["a"] * 4] * 3)}, "not numbers"),
    "complex numbers": ({**ROWS, "ids": ROWS["ids"] * 1j}, "not numbers"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_refused_with_the_file_and_the_reason(case: str, tmp_path: Path) -> None:
    arrays, said = WRONG[case]
    message = refused(npz(tmp_path / "a.npz", **arrays))
    assert said in message
    assert "a.npz" in message


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, (os.environ["EVIL"],)


def test_nothing_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVIL", str(tmp_path / "evil"))
    np.save(tmp_path / "ids.npy", np.array([Evil()], dtype=object), allow_pickle=True)
    assert "unpickled" in refused(tmp_path / "ids.npy", inputs=(IDS,))
    (tmp_path / "ids.npy").write_bytes(pickle.dumps(Evil()))
    refused(tmp_path / "ids.npy", inputs=(IDS,))
    np.savez(tmp_path / "a.npz", ids=np.array([Evil()], dtype=object), mask=ROWS["mask"])
    assert "unpickled" in refused(tmp_path / "a.npz")
    assert not (tmp_path / "evil").exists()


def with_header(shape: str, body: bytes, dtype: str = "<i8") -> bytes:
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}"
    text = text.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + body


def zipped(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return path


def test_a_header_that_promises_more_than_there_is_takes_no_memory(tmp_path: Path) -> None:
    mask = io.BytesIO()
    np.save(mask, ROWS["mask"])
    for shape in ("(1000000000000, 4)", "(3, 5)", "(-3, -4)"):
        hostile = with_header(shape, ROWS["ids"].tobytes())
        assert "its header is wrong" in refused(zipped(tmp_path / "a.npz", ids=hostile, mask=mask.getvalue()))
        (tmp_path / "ids.npy").write_bytes(hostile)
        assert "its header is wrong" in refused(tmp_path / "ids.npy", inputs=(IDS,))


def test_an_archive_that_expands_a_thousandfold_is_refused(tmp_path: Path) -> None:
    rows, path = 2**28 // 32 + 2**16, tmp_path / "a.npz"
    with (
        zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("ids.npy", "w") as file,
    ):
        file.write(with_header(f"({rows}, 4)", b""))
        for _ in range(rows * 32 // 2**20):
            file.write(bytes(2**20))
    assert "is made to fill memory" in refused(path, inputs=(IDS,))


@pytest.mark.parametrize("kind", ["a.npz", "a.safetensors", "ids.npy"])
@pytest.mark.parametrize("keeps", [0, 1, 40, -9])
def test_files_that_are_cut_short_are_refused(kind: str, keeps: int, tmp_path: Path) -> None:
    npz(tmp_path / "a.npz", ids=ROWS["ids"])
    save_file({"ids": ROWS["ids"]}, tmp_path / "a.safetensors")
    np.save(tmp_path / "ids.npy", ROWS["ids"])
    path = tmp_path / kind
    path.write_bytes(path.read_bytes()[:keeps])
    assert kind in refused(path, inputs=(IDS,))


def test_a_damaged_member_is_refused(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", ids=np.arange(400).reshape(100, 4))
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)
    assert "a.npz" in refused(path, inputs=(IDS,))


def test_other_files_and_empty_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("1 2 3")
    assert "of no kind that is read" in refused(tmp_path / "a.txt")
    assert "there is no such file" in refused(tmp_path / "missing.npz")
    assert "holds no inputs" in refused(tmp_path)


# In Python


def arrays(given: Any, inputs: tuple[TensorSpec, ...] = TWO) -> Samples:
    source = source_of(given)
    assert source is not None
    return source.read(inputs, ranges=RANGES)


def test_arrays_in_every_form() -> None:
    same(arrays(ROWS))
    same(arrays([ROWS]))
    same(arrays(tuple(ROWS.values())))
    same(arrays({name: torch.from_numpy(array) for name, array in ROWS.items()}))
    same(arrays(ROWS["ids"], inputs=(IDS,)), {"ids": ROWS["ids"]})
    same(arrays([ROWS["ids"][:1], ROWS["ids"][1:]], inputs=(IDS,)), {"ids": ROWS["ids"]})
    assert source_of(None) is None


def test_an_iterator_may_be_without_end_and_fill_one_array_again() -> None:
    def endless() -> Iterator[dict[str, Any]]:
        ids = np.zeros((1, 4), np.int64)
        while True:
            yield {"ids": ids, "mask": np.ones((1, 4), np.float32)}
            ids += 1

    found = arrays(endless())
    assert found.rows == MAX_ROWS
    assert len(set(found.groups[0]["ids"][:, 0].tolist())) == MAX_ROWS


def test_paths_are_files_in_python_too(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", **ROWS)
    for given in (path, str(path), [path]):
        source = source_of(given)
        assert isinstance(source, FileSource)
        same(source.read(TWO, ranges=RANGES))


NO_ARRAYS = {
    "a number": 5,
    "bytes": b"ids.npz",
    "a list in a dict": {"ids": [[1, 2]]},
    "objects": {"ids": np.array([None])},
    "an empty list": [],
    "an empty tuple": (),
    "an empty iterator": iter([]),
    "an empty path": "",
    "bfloat16": torch.zeros(1, 4, dtype=torch.bfloat16),
    "a sparse tensor": {"ids": torch.eye(4).to_sparse()},
    "a tensor without data": {"ids": torch.zeros(1, 4, device="meta")},
}


@pytest.mark.parametrize("what", NO_ARRAYS)
def test_what_is_no_arrays_is_refused(what: str) -> None:
    with pytest.raises(InputError):
        source_of(NO_ARRAYS[what])


def test_a_tensor_with_the_lazy_negative_bit_is_taken_with_its_sign() -> None:
    tensor = torch._neg_view(-torch.ones(2, 4, dtype=torch.int64))
    assert arrays({"ids": tensor}, inputs=(IDS,)).groups[0]["ids"].min() == 1


def test_equal_arrays_have_equal_digests() -> None:
    first = ArraySource(ROWS).digest()
    assert ArraySource({name: array.copy() for name, array in ROWS.items()}).digest() == first
    assert ArraySource({**ROWS, "ids": ROWS["ids"] + 1}).digest() != first
