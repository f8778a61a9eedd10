"""What is run through the graph to calibrate it: pictures, or arrays for models that take something else."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trtship.errors import ImageError, InputError
from trtship.files import open_regular, sha256_of
from trtship.input_samples import Samples, rows_of
from trtship.pictures import is_picture_name
from trtship.preprocess import Preprocess, preprocess_images
from trtship.spec import TensorSpec, batch_letter

Array = Any
"""A numpy array."""

BATCH = 4
"""Rows at a time: a histogram is made of all calibrated tensors of a batch at once, 40 MiB a picture for Swin-T."""
MOST = 256
"""Pictures that are used of a larger folder. A range hardly changes after a few hundred: TensorRT's guide names 500
for ImageNet (NVIDIA, "Working with Quantized Types")."""


@dataclass(frozen=True)
class Feeds:
    """`rows` in batches, each a dict of arrays by input; `source` says where they come from. A fixed batch that the
    rows do not fill is filled with the last one."""

    source: str
    rows: int
    batch: int
    fixed: bool
    load: Callable[[int, int], Mapping[str, Array]]

    def __iter__(self) -> Iterator[Mapping[str, Array]]:
        for begin in range(0, self.rows, self.batch):
            some = dict(self.load(begin, min(begin + self.batch, self.rows)))
            missing = self.batch - len(next(iter(some.values())))
            if self.fixed and missing:
                some = {name: np.concatenate([a, np.repeat(a[-1:], missing, axis=0)]) for name, a in some.items()}
            yield some


def feeds_of_folder(
    folder: str | Path, inputs: Sequence[TensorSpec], preprocess: Preprocess | None, *, most: int = MOST
) -> Feeds:
    """The pictures below `folder` (any layout), preprocessed, at most `most` of them, spread evenly over the folder.

    Without `preprocess`, or for a model of several inputs, the `.npy` files in it: one for each input, `INPUT.npy`, all
    of as many rows; for one input, a single file of any name. Raises ImageError, InputError.
    """
    root = Path(folder)
    if preprocess is None or len(inputs) != 1:
        return feeds_of_arrays(_read_arrays(root, inputs), inputs, source=str(folder), most=most)
    paths = pictures_below(root)
    chosen = [paths[i] for i in _spread(len(paths), most)]
    spec = inputs[0]

    def load(begin: int, end: int) -> Mapping[str, Array]:
        return {spec.name: preprocess_images(chosen[begin:end], preprocess).astype(spec.dtype, copy=False)}

    return _feeds(str(folder), len(chosen), inputs, load)


def feeds_of_arrays(
    arrays: Mapping[str, Array], inputs: Sequence[TensorSpec], *, source: str, most: int = MOST
) -> Feeds:
    """Arrays [rows, ...] by input, the reference's inputs for example. Raises InputError."""
    rows = {name: len(array) for name, array in arrays.items() if array.ndim}
    if len(set(rows.values())) != 1 or set(rows) != {spec.name for spec in inputs}:
        raise InputError(
            f"{source} does not fit the model",
            why=f"it has rows of {rows or 'nothing'}, and the inputs are {', '.join(map(str, inputs))}",
            do="give as many rows for each input",
        )
    chosen = _spread(next(iter(rows.values())), most)

    def load(begin: int, end: int) -> Mapping[str, Array]:
        return {s.name: np.ascontiguousarray(arrays[s.name][chosen[begin:end]]).astype(s.dtype) for s in inputs}

    return _feeds(source, len(chosen), inputs, load)


def feeds_of_samples(samples: Samples, inputs: Sequence[TensorSpec]) -> Feeds:
    """The user's own rows, those of equal sizes together."""
    return _FeedsOfGroups([_feeds_of_group(samples.origin, group, inputs) for group in samples.groups])


def _feeds_of_group(source: str, group: Mapping[str, Array], inputs: Sequence[TensorSpec]) -> Feeds:
    """An input whose first dimension is not the batch goes into each batch as it is."""
    batch = batch_letter(inputs)
    whole = {s.name for s in inputs if batch is not None and (not s.shape or s.shape[0] != batch)}

    def load(begin: int, end: int) -> Mapping[str, Array]:
        return {s.name: group[s.name] if s.name in whole else group[s.name][begin:end] for s in inputs}

    return _feeds(source, rows_of(group, inputs), inputs, load)


class _FeedsOfGroups(Feeds):
    """The batches of several feeds, one after the other."""

    def __init__(self, groups: Sequence[Feeds]) -> None:
        one = groups[0]
        rows = sum(group.rows for group in groups)
        super().__init__(source=one.source, rows=rows, batch=one.batch, fixed=one.fixed, load=one.load)
        object.__setattr__(self, "groups", tuple(groups))

    groups: Sequence[Feeds]

    def __iter__(self) -> Iterator[Mapping[str, Array]]:
        for group in self.groups:
            yield from group


def feed_files(root: Path) -> list[Path]:
    """The pictures below a folder, else the arrays in it, sorted. Raises ImageError where there are neither."""
    return (sorted(root.glob("*.npy")) if root.is_dir() else []) or pictures_below(root)


def digest_of_feeds(root: Path) -> str:
    """SHA-256 over the names and contents of `feed_files`. Raises ImageError."""
    whole = hashlib.sha256()
    for path in feed_files(root):
        try:
            whole.update(f"{path.relative_to(root)} {sha256_of(path)}\n".encode(errors="surrogateescape"))
        except OSError as error:
            raise ImageError(f"cannot read {path}", why=str(error.strerror), do="mend its permissions") from error
    return whole.hexdigest()


def pictures_below(root: Path) -> list[Path]:
    """Every picture file in a folder and its sub-folders, sorted. Raises ImageError where there is none."""
    if not root.is_dir():
        raise ImageError(
            f"there is no folder {root}", why="no such folder" if not root.exists() else "it is a file", do="check it"
        )
    found = [Path(place, name) for place, _, names in os.walk(root, followlinks=True) for name in names]
    pictures = sorted(path for path in found if is_picture_name(path.name))
    if not pictures:
        raise ImageError(f"{root} holds no picture", why=f"of its {len(found)} files none is one", do="check the path")
    return pictures


def _feeds(source: str, rows: int, inputs: Sequence[TensorSpec], load: Callable[[int, int], Any]) -> Feeds:
    is_fixed = batch_letter(inputs) is None
    size = inputs[0].shape[0] if is_fixed and inputs[0].shape else BATCH
    return Feeds(source=source, rows=rows, batch=int(size), fixed=is_fixed, load=load)


def _spread(count: int, most: int) -> Array:
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))


def _read_arrays(root: Path, inputs: Sequence[TensorSpec]) -> dict[str, Array]:
    files = sorted(root.glob("*.npy")) if root.is_dir() else []
    names = [spec.name for spec in inputs]
    by_name = {path.stem: path for path in files}
    if len(files) == 1 and len(names) == 1:
        by_name = {names[0]: files[0]}
    if not all(name in by_name for name in names):
        raise InputError(
            f"{root} holds no arrays to calibrate with",
            why=f"a model without preprocessing needs {', '.join(f'{name}.npy' for name in names)}",
            do="save them with numpy, [rows, ...] each",
        )
    try:
        return {name: _mapped(by_name[name]) for name in names}
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"cannot read the arrays in {root}", why=str(error), do="save them with numpy.save") from error


def _mapped(path: Path) -> Array:
    """The array in a `.npy` file, read when it is used. Raises OSError, also for what is no regular file."""
    with open_regular(path):
        return np.load(path, mmap_mode="r", allow_pickle=False)
