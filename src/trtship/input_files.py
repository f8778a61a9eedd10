"""Real inputs that a user supplies in files: `.npz`, `.safetensors`, `.npy`, and folders of these or of pictures.

Nothing is unpickled, and no file makes more memory used than its rows take: sizes are read from headers first, and of
a long file a stated number of rows is read, spread over it.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np

from trtship.errors import InputError
from trtship.files import open_regular, sha256_of
from trtship.input_samples import (
    MAX_BYTES,
    MAX_ROWS,
    ArraySource,
    Samples,
    SampleSource,
    check_arrays,
    check_finite,
    check_form,
    check_names,
    chosen_rows,
    merged,
    rows_of,
    told,
    unequal_rows,
)
from trtship.needs import need
from trtship.pictures import is_picture_name
from trtship.preprocess import Preprocess, preprocess_images
from trtship.spec import ShapeRange, TensorSpec, batch_letter

__all__ = ["ArraySource", "FileSource", "SampleSource", "Samples", "source_of"]

FORMS = ".npz, .safetensors, a folder of INPUT.npy files, or a folder of pictures"
SUFFIXES = (".npz", ".safetensors", ".npy")
MAX_FILES = 256
"""Files, or folders of samples, that are used of one folder, spread over it; of pictures as many as rows."""
MAX_EXPANSION, EXPANDS_FROM = 1000, 2**28
"""A compressed array of at least so many bytes is refused where it is so many times as large as in its file."""
DAMAGE = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, struct.error, NotImplementedError)
"""What numpy and zipfile raise for files that are cut short, damaged or hostile."""

Array = Any
"""A numpy array."""


class _Member(msgspec.Struct, frozen=True):
    """One array of a file: its dtype and shape from the header, and a function that reads some of its rows."""

    dtype: Any
    shape: tuple[int, ...]
    rows: Callable[[Array], Array]
    """Row numbers, ascending -> these rows. None for all that there is."""


def source_of(given: Any) -> SampleSource | None:
    """Return the source of what a caller gave for `inputs`: paths are files, all else arrays; None for None.

    Raises:
        InputError: It is neither, or it is empty: a list of files that came out empty is no wish for invented inputs.
    """
    if given is None:
        return None
    if isinstance(given, FileSource | ArraySource):
        return given
    if isinstance(given, str | Path):
        return FileSource([given])
    if isinstance(given, list | tuple) and given and all(isinstance(one, str | Path) for one in given):
        return FileSource(given)
    return ArraySource(given)


class FileSource:
    """Files and folders, each with rows of all inputs.

    Args:
        paths: `.npz` or `.safetensors` files with an array for each input, `.npy` files for a model of one input, or
            folders: of these files, of `INPUT.npy` files, of such folders, or of pictures.
    """

    def __init__(self, paths: Sequence[str | Path]) -> None:
        if not all(map(str, paths)):
            raise InputError(
                "--inputs is empty",
                why="an empty path is no file or folder",
                do="give one, or . for the current folder",
            )
        self.paths = tuple(Path(path) for path in paths)
        self.origin = ", ".join(path.name or str(path) for path in self.paths)

    def check(self) -> None:
        """Raise InputError where a file is missing, or of no kind that is taken. Nothing is read."""
        for path in self.paths:
            _files_below(path)

    def digest(self) -> str:
        """Return the SHA-256 over the names and contents of all files.

        Raises:
            InputError: One of them is missing, cannot be read, or is of no kind that is taken.
        """
        whole = hashlib.sha256()
        for place, root in enumerate(self.paths):
            for path in _files_below(root):
                try:
                    whole.update(
                        f"{place} {path.relative_to(root)} {sha256_of(path)}\n".encode(errors="surrogateescape")
                    )
                except OSError as error:
                    raise _unreadable(path, error) from error
        return whole.hexdigest()

    def read(
        self,
        inputs: Sequence[TensorSpec],
        *,
        ranges: Mapping[str, ShapeRange],
        preprocess: Preprocess | None = None,
    ) -> Samples:
        """Return rows of all files, checked.

        Args:
            inputs: The model's inputs.
            ranges: The ranges of their dynamic sizes.
            preprocess: How a picture becomes the model's only input; None where the source does not tell.

        Raises:
            InputError: A file cannot be read, or does not fit the inputs.
            ImageError: A picture cannot be read.
        """
        groups: list[dict[str, Array]] = []
        texts = []
        for path in self.paths:
            found, total = _read(path, inputs, ranges, preprocess)
            groups += found
            texts.append(told(sum(rows_of(group, inputs) for group in found), total, path.name or str(path)))
        return Samples(tuple(merged(groups, inputs)), ", ".join(texts), self.digest())


def _read(
    path: Path, inputs: Sequence[TensorSpec], ranges: Mapping[str, ShapeRange], preprocess: Preprocess | None
) -> tuple[list[dict[str, Array]], int]:
    """Groups of rows of one file or folder, and how many rows it has in all."""
    files = _files_below(path)
    if any(is_picture_name(file.name) for file in files):
        return _pictures(path, files, inputs, ranges, preprocess)
    units = _units(path, files)
    some = [units[i] for i in np.unique(np.linspace(0, len(units) - 1, min(len(units), MAX_FILES)).round().astype(int))]
    most = max(1, MAX_ROWS // len(some))
    groups, total = [], 0
    for unit in some:
        with _opened(unit, inputs) as (where, members):
            group, count = _rows(members, inputs, ranges, where, most, MAX_BYTES // len(some))
        groups.append(group)
        total += count
    return groups, total if len(some) == len(units) else total * len(units) // len(some)


def _rows(
    members: Mapping[str, _Member],
    inputs: Sequence[TensorSpec],
    ranges: Mapping[str, ShapeRange],
    where: str,
    most: int,
    room: int,
) -> tuple[dict[str, Array], int]:
    """Some rows of one file, of which the headers are checked before anything is read."""
    check_names(members, inputs, where=where)
    batch, sizes = batch_letter(inputs), dict[str, tuple[int, str]]()
    for spec in inputs:
        one = members[spec.name]
        check_form(spec, one.dtype, one.shape, ranges=ranges, batch=batch, where=where, sizes=sizes)
    has_rows = {s.name: bool(s.shape) and (batch is None or s.shape[0] == batch) for s in inputs}
    lengths = {s.name: members[s.name].shape[0] for s in inputs if has_rows[s.name]}
    bytes_each = sum(
        int(np.prod(members[s.name].shape[int(has_rows[s.name]) :], dtype=np.float64)) * members[s.name].dtype.itemsize
        for s in inputs
    )
    if bytes_each > MAX_BYTES:
        raise InputError(
            f"{where}: one row takes {bytes_each / 2**30:.1f} GiB", why="at most 1 GiB is read", do="check its shape"
        )
    if len(set(lengths.values())) > 1:
        raise unequal_rows(lengths, where=where)
    count = next(iter(lengths.values()), 1)
    chosen = chosen_rows(count, min(most, max(1, room // max(1, bytes_each))), inputs)
    group = {}
    for spec in inputs:
        try:
            group[spec.name] = np.ascontiguousarray(members[spec.name].rows(chosen if has_rows[spec.name] else None))
        except DAMAGE as error:
            raise _unreadable(Path(where), error, of=spec.name) from error
        check_finite(spec, group[spec.name], where=where, rows=chosen if has_rows[spec.name] else None)
    return group, int(count)


# files and folders


def _files_below(path: Path) -> list[Path]:
    """The file itself, or all files of a folder that are taken, sorted. Raises InputError where there is none."""
    if not path.exists():
        raise InputError(f"--inputs {path}: there is no such file", why="the path does not exist", do="check the path")
    if path.is_file():
        if path.suffix not in SUFFIXES and not is_picture_name(path.name):
            raise InputError(
                f"--inputs {path} is of no kind that is read", why=f"it takes {FORMS}", do="save it with numpy.savez"
            )
        return [path]
    found = [Path(place, name) for place, _, names in os.walk(path, followlinks=True) for name in names]
    arrays = sorted(file for file in found if file.suffix in SUFFIXES)
    chosen = arrays or sorted(file for file in found if is_picture_name(file.name))
    if not chosen:
        raise InputError(
            f"--inputs {path} holds no inputs",
            why=f"none of its {len(found)} files is an array or a picture",
            do=f"it takes {FORMS}",
        )
    return chosen


def _units(root: Path, files: Sequence[Path]) -> list[Path]:
    """What holds an array for each input: files, and folders of `.npy` files."""
    found = dict.fromkeys(file.parent if file.suffix == ".npy" and file != root else file for file in files)
    return list(found)


@contextmanager
def _opened(unit: Path, inputs: Sequence[TensorSpec]) -> Iterator[tuple[str, dict[str, _Member]]]:
    """The unit's name for messages, and its arrays by input; they can be read while the block lasts."""
    try:
        if unit.is_dir():
            files = sorted(unit.glob("*.npy"))
            alone = len(files) == 1 and len(inputs) == 1
            named = {inputs[0].name: files[0]} if alone else {file.stem: file for file in files}
            opened = str(unit), {name: _npy(file) for name, file in named.items()}
        elif unit.suffix == ".npy":
            name = inputs[0].name if len(inputs) == 1 else unit.stem
            opened = str(unit), {name: _npy(unit)}
        elif unit.suffix == ".npz":
            with zipfile.ZipFile(unit) as archive:
                yield str(unit), _npz(archive, unit)
            return
        else:
            opened = str(unit), _safetensors(unit)
    except InputError:
        raise
    except DAMAGE as error:
        raise _unreadable(unit, error) from error
    yield opened


def _npy(path: Path) -> _Member:
    try:
        with open_regular(path) as file:
            dtype, shape, fortran, begins = _header(file, str(path))
            _check_length(dtype, shape, path.stat().st_size - begins, str(path))
        array = (
            np.memmap(path, dtype=dtype, mode="r", shape=shape, order="F" if fortran else "C", offset=begins)
            if (np.prod(shape, dtype=np.int64) > 0 and shape)
            else np.load(path, allow_pickle=False)
        )
    except InputError:
        raise
    except DAMAGE as error:
        raise _unreadable(path, error) from error
    return _Member(dtype, shape, lambda rows: np.array(array if rows is None else array[rows]))


def _npz(archive: zipfile.ZipFile, path: Path) -> dict[str, _Member]:
    found = {}
    for info in archive.infolist():
        if info.is_dir() or not info.filename.endswith(".npy"):
            continue
        name = info.filename.removesuffix(".npy")
        where = f"{path}: {name}"
        if info.file_size > EXPANDS_FROM and info.file_size > MAX_EXPANSION * max(1, info.compress_size):
            raise InputError(
                f"{where} expands to {info.file_size / 2**30:.1f} GiB from {info.compress_size} bytes",
                why="such an archive is made to fill memory",
                do="save it with numpy.savez",
            )
        with archive.open(info) as member:
            dtype, shape, fortran, begins = _header(member, where)
        _check_length(dtype, shape, info.file_size - begins, where)
        found[name] = _Member(dtype, shape, _npz_rows(archive, info, dtype, shape, fortran, begins))
    return found


def _npz_rows(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, dtype: Any, shape: tuple[int, ...], fortran: bool, begins: int
) -> Callable[[Array], Array]:
    def read(rows: Array) -> Array:
        with archive.open(info) as member:
            _skip(member, begins)
            if rows is None or fortran or not shape:
                flat = np.frombuffer(_exactly(member, info.file_size - begins), dtype)
                array = flat.reshape(shape, order="F" if fortran else "C")
                return np.array(array if rows is None else array[rows])
            each = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
            parts, at = [], 0
            for row in rows:
                _skip(member, (int(row) - at) * each)
                parts.append(_exactly(member, each))
                at = int(row) + 1
            _skip(member, (shape[0] - at) * each)  # to the end, where the archive's checksum is compared
            if member.read(1):
                raise ValueError("it has more bytes than its header says")
            return np.frombuffer(b"".join(parts), dtype).reshape(len(rows), *shape[1:])

    return read


def _safetensors(path: Path) -> dict[str, _Member]:
    package = need("safetensors", purpose=f"reading {path.name}")
    opened = need("safetensors", purpose=f"reading {path.name}").safe_open
    types = {
        "F64": "float64", "F32": "float32", "F16": "float16", "I64": "int64", "I32": "int32", "I16": "int16",
        "I8": "int8", "U8": "uint8", "BOOL": "bool", "U16": "uint16", "U32": "uint32", "U64": "uint64",
    }  # fmt: skip
    found = {}
    try:
        file = opened(str(path), framework="numpy")
        for name in file.keys():  # noqa: SIM118 - no mapping
            part = file.get_slice(name)
            kind, shape = part.get_dtype(), tuple(part.get_shape())
            if kind not in types:
                raise InputError(f"{path}: {name} is {kind}", why="numpy has no such type", do="save it as float32")
            found[name] = _Member(np.dtype(types[kind]), shape, _slices(file, name, shape))
    except package.SafetensorError as error:
        raise _unreadable(path, error) from error
    return found


def _slices(file: Any, name: str, shape: tuple[int, ...]) -> Callable[[Array], Array]:
    def read(rows: Array) -> Array:
        if rows is None or not shape:
            return file.get_tensor(name)
        part = file.get_slice(name)
        return np.concatenate([part[int(row) : int(row) + 1] for row in rows])

    return read


# headers


def _header(file: IO[bytes], where: str) -> tuple[Any, tuple[int, ...], bool, int]:
    """dtype, shape, order and the place of the first element of an array in numpy's format."""
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"version {version} of numpy's format is not read")
    shape, fortran, dtype = readers[version](file)
    if dtype.hasobject or dtype.kind not in "biuf":
        raise InputError(
            f"{where} holds {dtype}, not numbers",
            why="objects are pickled, and nothing is unpickled here" if dtype.hasobject else "inputs are numbers",
            do="save an array of numbers",
        )
    return dtype, tuple(int(size) for size in shape), bool(fortran), file.tell()


def _check_length(dtype: Any, shape: tuple[int, ...], there: int, where: str) -> None:
    wanted = dtype.itemsize
    for size in shape:
        wanted *= size  # of Python's integers, which do not overflow
    if wanted != there or any(size < 0 for size in shape):
        raise InputError(
            f"{where} is cut short, or its header is wrong",
            why=f"it says {list(shape)} of {dtype}, {wanted} bytes, and there are {there}",
            do="write it again",
        )


def _skip(file: IO[bytes], count: int) -> None:
    while count > 0:
        part = file.read(min(count, 2**20))
        if not part:
            raise EOFError("it ends too early")
        count -= len(part)


def _exactly(file: IO[bytes], count: int) -> bytes:
    parts = []
    while count > 0:
        part = file.read(min(count, 2**20))
        if not part:
            raise EOFError("it ends too early")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


# pictures


def _pictures(
    root: Path,
    files: Sequence[Path],
    inputs: Sequence[TensorSpec],
    ranges: Mapping[str, ShapeRange],
    preprocess: Preprocess | None,
) -> tuple[list[dict[str, Array]], int]:
    if preprocess is None or len(inputs) != 1:
        raise InputError(
            f"--inputs {root} holds pictures, and the model's source tells no preprocessing for them",
            why=f"the inputs are {', '.join(map(str, inputs))}",
            do="give arrays, or let the source tell it (trtship_preprocess, see README)",
        )
    chosen = [files[i] for i in chosen_rows(len(files), MAX_ROWS, inputs)] if len(files) > 1 else list(files)
    array = preprocess_images(chosen, preprocess).astype(inputs[0].dtype, copy=False)
    group = {inputs[0].name: np.ascontiguousarray(array)}
    check_arrays(group, inputs, ranges=ranges, where=str(root))
    return [group], len(files)


def _unreadable(path: Path, error: BaseException, *, of: str = "") -> InputError:
    why = getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]
    if "pickle" in why or "Object arrays" in why:
        why = "it holds pickled objects, and nothing is unpickled here"
    name = f"{of} in {path}" if of else str(path)
    return InputError(
        f"cannot read the inputs: {name}", why=str(why)[:300], do="write the file again, with numpy.savez"
    )
