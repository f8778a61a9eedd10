"""Picture files: opened with one clear message when they cannot be, and listed in ImageFolder layout."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from trtship.errors import ImageError

# torchvision.datasets.folder.IMG_EXTENSIONS
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
# what Pillow's decoders raise on files cut short or damaged
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, OverflowError, struct.error, zlib.error)


def open_image(path: str | Path) -> Image.Image:
    """A picture with all its pixels read and its file closed again, in its own mode, EXIF left as it is.

    Raises ImageError when it is missing, cut short, not a picture, or larger than Pillow's guard against
    decompression bombs (`PIL.Image.MAX_IMAGE_PIXELS`, twice) allows.
    """
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except FileNotFoundError:
        raise ImageError(f"there is no picture {path}", why="no such file", do="check the path") from None
    except (IsADirectoryError, PermissionError) as error:
        raise ImageError(
            f"cannot read the picture {path}", why=str(error.strerror), do="name a file you may read"
        ) from None
    except UnidentifiedImageError:
        why = "it is empty" if os.path.getsize(path) == 0 else "its content is in no picture format that Pillow knows"
        raise ImageError(f"{path} is not a picture", why=why, do="name a JPEG, PNG, WebP, TIFF or BMP file") from None
    except Image.DecompressionBombError as error:
        raise ImageError(f"the picture {path} is too large", why=str(error), do="scale it down first") from None
    except DAMAGE as error:
        raise ImageError(
            f"the picture {path} is damaged", why=str(error) or type(error).__name__, do="fetch or write it again"
        ) from error


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
    walk = sorted((root, names) for root, _, names in os.walk(folder, followlinks=True))
    return [Path(root, name) for root, names in walk for name in sorted(names) if is_picture_name(name)]


def _first(names: list[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
