"""Picture files: opened with one clear message when they cannot be, and listed in ImageFolder layout."""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from io import BytesIO
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from trtship.errors import ImageError
from trtship.files import open_regular, read_bounded

# torchvision.datasets.folder.IMG_EXTENSIONS
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
"""Names of Pillow's decoders that may be used; JPEG includes MPO, which phones write, and PPM PGM and PBM."""
NAMES = "JPEG, PNG, WebP, BMP, TIFF, GIF or PPM"
MAX_PIXELS = 2**27
"""Of one picture, 134 million: sensors of 100 megapixels pass, and 8-bit RGB takes 400 MB before it is resized."""
MAX_BYTES = 512 * 2**20
"""Of one picture's file: `MAX_PIXELS` in RGB, uncompressed."""
MAX_FOLDERS = 1_000_000
"""Folders below one class, links followed."""
# what Pillow's decoders raise on files cut short or damaged
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, OverflowError, struct.error, zlib.error)


def open_image(path: str | Path) -> Image.Image:
    """Return a picture with all its pixels read and its file closed again, in its own mode, EXIF left as it is.

    The format is told by the content, not by the name: only the decoders of `FORMATS` are tried, since others of
    Pillow start programs (EPS: Ghostscript) or are seldom looked at for faults.

    Raises:
        ImageError: the file is missing, not a regular file, larger than `MAX_BYTES`, not in one of `FORMATS`, cut
            short, or has more than `MAX_PIXELS` pixels (or than `PIL.Image.MAX_IMAGE_PIXELS`, twice, allows).
    """
    data = _content(path)
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ImageError(
                    f"the picture {path} is too large",
                    why=f"it has {image.width} x {image.height} pixels, and {MAX_PIXELS} are the most",
                    do="scale it down first",
                )
            image.load()
            return image
    except UnidentifiedImageError:
        why = "it is empty" if not data else "its content is in no picture format that is read here"
        raise ImageError(f"{path} is not a picture", why=why, do=f"name a {NAMES} file") from None
    except Image.DecompressionBombError as error:
        raise ImageError(f"the picture {path} is too large", why=str(error), do="scale it down first") from None
    except MemoryError as error:
        raise ImageError(
            f"the picture {path} is too large", why="its pixels do not fit in memory", do="scale it down first"
        ) from error
    except DAMAGE as error:
        raise ImageError(
            f"the picture {path} is damaged", why=str(error) or type(error).__name__, do="fetch or write it again"
        ) from error


def hash_image(path: str | Path) -> str:
    """Return the hex SHA-256 of a picture's file. Raises ImageError as `open_image` does for what it cannot read."""
    return hashlib.sha256(_content(path)).hexdigest()


def _content(path: str | Path) -> bytes:
    """All bytes of a regular file, `MAX_BYTES` at most. Raises ImageError."""
    try:
        with open_regular(path) as file:
            data = read_bounded(file, MAX_BYTES)
    except FileNotFoundError:
        raise ImageError(f"there is no picture {path}", why="no such file", do="check the path") from None
    except ValueError as error:  # a NUL in the path
        raise ImageError(f"there is no picture {str(path)!r}", why=str(error), do="check the path") from None
    except OSError as error:
        raise ImageError(
            f"cannot read the picture {path}", why=error.strerror or str(error), do="name a file you may read"
        ) from None
    if len(data) > MAX_BYTES:
        raise ImageError(
            f"the picture {path} is too large",
            why=f"the file has more than {MAX_BYTES} bytes",
            do="save it compressed, or scale it down",
        )
    return data


def list_image_folder(folder: str | Path) -> tuple[tuple[str, ...], list[tuple[Path, int]]]:
    """Class names, sorted, and every picture below them with its class index, in torchvision's ImageFolder order.

    As there: each subfolder of `folder` is a class, subfolders of those are searched too (links followed), and only
    files that end in one of `EXTENSIONS` count. Raises ImageError for a folder that is missing, empty or has no class
    folder, and for classes without a picture.
    """
    root = Path(folder)
    layout = f"one subfolder per class, as {root / 'cat' / '1.jpg'}"
    try:
        entries = sorted(os.scandir(root), key=lambda entry: entry.name)
    except OSError as error:
        raise ImageError(f"cannot read the folder {root}", why=str(error.strerror), do=f"it takes {layout}") from None
    classes = tuple(entry.name for entry in entries if entry.is_dir())
    if not classes:
        loose = sum(is_picture_name(entry.name) for entry in entries)
        why = "it is empty" if not entries else f"it has no subfolder (and {loose} pictures that belong to no class)"
        raise ImageError(f"{root} is no folder of labelled pictures", why=why, do=f"it takes {layout}")
    samples = [(path, index) for index, name in enumerate(classes) for path in _pictures_below(root / name)]
    empty = sorted(set(classes) - {classes[index] for _, index in samples})
    if empty:
        raise ImageError(
            f"{root} has classes without a picture: {_first(empty)}",
            why=f"no file in them ends in {' '.join(EXTENSIONS)}",
            do="add pictures, or remove these folders",
        )
    return classes, samples


def is_picture_name(name: str) -> bool:
    """Whether a file of this name counts as a picture in a folder."""
    return name.lower().endswith(EXTENSIONS)


def _pictures_below(folder: Path) -> list[Path]:
    """In the order of `os.walk`'s folders, sorted. A link to a folder that it is in is not followed: it has no end."""
    found: list[tuple[str, list[str]]] = []
    stack = [(os.fspath(folder), frozenset[tuple[int, int]]())]
    while stack:
        place, above = stack.pop()
        try:
            status = os.stat(place)
            entries = list(os.scandir(place))
        except OSError:
            continue  # as os.walk does
        own = status.st_dev, status.st_ino
        if own in above:
            continue
        folders = [entry.name for entry in entries if entry.is_dir()]
        found.append((place, [entry.name for entry in entries if entry.name not in set(folders)]))
        if len(found) > MAX_FOLDERS:
            raise ImageError(
                f"{folder} has too many folders", why=f"more than {MAX_FOLDERS}, links followed", do="name another"
            )
        stack += [(os.path.join(place, name), above | {own}) for name in folders]
    return [Path(root, name) for root, names in sorted(found) for name in sorted(names) if is_picture_name(name)]


def _first(names: list[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
