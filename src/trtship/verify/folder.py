"""Which of the model's classes a picture folder's sub-folders mean."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trtship.errors import ImageError
from trtship.pictures import list_image_folder
from trtship.verify.evaluate import Picture


def labelled_pictures(folder: Path, *, labels: Sequence[str] | None, classes: int | None) -> list[Picture]:
    """The pictures of a folder in ImageFolder layout with their class index.

    Sub-folders are named after labels; or after class indices; or there is one for each class, and then their sorted
    order is the classes' order, as torchvision's ImageFolder has it. Anything else raises ImageError, and so do
    folders of which only some are labels, or whose two readings (`10` sorts before `2`) differ: a guess would give a
    wrong top-1 without a word.
    """
    names, found = list_image_folder(folder)
    distinct = set(labels) if labels and len(set(labels)) == len(labels) else set()
    by_index = _indices(names, classes)
    by_order = {name: i for i, name in enumerate(names)} if len(names) == classes else None
    if labels and distinct.issuperset(names):
        index = {name: labels.index(name) for name in names}
    elif by_index and by_order and by_index != by_order:
        raise _unmatched(names, classes, "numbers mean one class as indices and another in sorted order")
    elif distinct.intersection(names):
        others = [name for name in names if name not in distinct]
        raise _unmatched(names, classes, f"some are labels, and {len(others)} are not (the first is {others[0]!r})")
    elif index_ := by_index or by_order:
        index = index_
    else:
        why = f"they are neither labels, nor class indices, nor one for each class (the first is {names[0]!r})"
        raise _unmatched(names, classes, why)
    return [Picture(path, index[names[target]]) for path, target in found]


def _indices(names: Sequence[str], classes: int | None) -> dict[str, int] | None:
    """What each name says as a number, where every one is the number of another class."""
    if not all(name.isdecimal() for name in names):
        return None
    numbers = [int(name) for name in names]
    fits = len(set(numbers)) == len(numbers) and (classes is None or max(numbers) < classes)
    return dict(zip(names, numbers, strict=True)) if fits else None


def _unmatched(names: Sequence[str], classes: int | None, why: str) -> ImageError:
    return ImageError(
        f"the {len(names)} class folders cannot be matched with the model's {classes or 'unknown number of'} classes",
        why=why,
        do="name the folders after the labels (--labels), or after class indices with leading zeros",
    )
