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
    order is the classes' order, as torchvision's ImageFolder has it. Anything else raises ImageError: a guess would
    give a wrong top-1 without a word.
    """
    names, found = list_image_folder(folder)
    if labels and len(set(labels)) == len(labels) and set(names) <= set(labels):
        index = {name: labels.index(name) for name in names}
    elif classes is not None and len(names) == classes:
        index = {name: i for i, name in enumerate(names)}
    elif all(name.isdecimal() for name in names) and (classes is None or max(map(int, names)) < classes):
        index = {name: int(name) for name in names}
    else:
        raise ImageError(
            f"the {len(names)} class folders cannot be matched with the model's {classes} classes",
            why=f"they are neither labels, nor class indices, nor one for each class (the first is {names[0]!r})",
            do="name the folders after the labels (--labels) or after class indices",
        )
    return [Picture(path, index[names[target]]) for path, target in found]
