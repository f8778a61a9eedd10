"""Pictures to arrays as the model expects them, from data in the bundle, with Pillow and numpy alone.

A `Preprocess` is what timm, torchvision and transformers do to a picture at evaluation, written down as steps. All
three resize 8-bit pixels with an antialiasing filter and then scale. timm and torchvision call Pillow for it, as the
steps here do; transformers resizes tensors, in PyTorch's own arithmetic, which `resample` repeats.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from trtship.errors import ImageError
from trtship.pictures import DAMAGE, open_image
from trtship.resample import REACH, resize_as_torch
from trtship.spec import Record

__all__ = [
    "FILTERS",
    "CenterCrop",
    "Fit",
    "Interpolation",
    "Normalize",
    "Preprocess",
    "Rescale",
    "Resize",
    "Step",
    "open_image",
    "preprocess_images",
]

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]
Fit = Literal["exact", "shortest", "cover", "contain"]
FILTERS: dict[str, Image.Resampling] = {filter.name.lower(): filter for filter in Image.Resampling}
MOST_PIXELS = 2**26
"""Of a resized picture, or of what a model takes, 8192 x 8192: a picture of which more is made in between is a thousand
times longer than wide."""
MAX_SIDE = 2**14
"""Of a resize or a crop; no vision model takes pictures of more."""
LARGEST, SMALLEST = 1e6, 1e-6
"""Of factors, means and standard deviations, in size: pixels are 0 to 255, and float32 is to hold the results."""


class Resize(Record, frozen=True, tag_field="op", tag="resize"):
    """Scale to, or around, `height` x `width` pixels.

    `fit` says how: `exact` to just that; `shortest` so that the shorter edge becomes `height` (= `width`), the longer
    one rounded down (torchvision's `Resize(int)`); `cover` so that both edges reach, `contain` so that none exceeds,
    the size, rounded to nearest (timm's `ResizeKeepRatio(longest=0)` and `(longest=1)`). `arithmetic` is
    whose weights and rounding.
    """

    height: int
    width: int
    fit: Fit
    interpolation: Interpolation
    arithmetic: Literal["pillow", "torch"] = "pillow"

    def __post_init__(self) -> None:
        _require_size(self.height, self.width, "resize")
        if self.arithmetic == "torch":
            _require(self.interpolation in REACH, f"torch has no antialiased {self.interpolation} resize")
        _require(self.fit != "shortest" or self.height == self.width, "resize by the shorter edge takes height = width")

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the result, for a picture of this size."""
        if self.fit == "exact":
            return self.height, self.width
        if self.fit == "shortest":
            longer = int(self.height * max(height, width) / min(height, width))
            return (longer, self.height) if width <= height else (self.height, longer)
        ratios = (height / self.height, width / self.width)
        ratio = max(ratios) if self.fit == "contain" else min(ratios)
        return round(height / ratio), round(width / ratio)


class CenterCrop(Record, frozen=True, tag_field="op", tag="center_crop"):
    """Cut `height` x `width` pixels from the middle, after padding edges that are shorter with `fill`.

    Where the margin is odd, `rounding` decides: `even` to the even pixel (timm, torchvision), `down` (transformers).
    `fill` is a level per channel, or () for black.
    """

    height: int
    width: int
    rounding: Literal["even", "down"] = "even"
    fill: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _require_size(self.height, self.width, "crop")
        _require(all(0 <= level <= 255 for level in self.fill), f"fill {self.fill} is no level in 0..255")


class Rescale(Record, frozen=True, tag_field="op", tag="rescale"):
    """Multiply every value by `factor`, as 1/255."""

    factor: float

    def __post_init__(self) -> None:
        _require(abs(self.factor) <= LARGEST, f"rescale by {self.factor}")


class Normalize(Record, frozen=True, tag_field="op", tag="normalize"):
    """`(x - mean) / std`, one of each per channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        _require(len(self.mean) == len(self.std), "mean and std differ in length")
        _require(all(s > 0 for s in self.std), f"std {self.std} is not positive")
        _require(all(SMALLEST <= s <= LARGEST for s in self.std), f"std {self.std} is not in {SMALLEST} to {LARGEST}")
        _require(all(abs(m) <= LARGEST for m in self.mean), f"mean {self.mean} is larger than {LARGEST}")


Step = Resize | CenterCrop | Rescale | Normalize


class Preprocess(Record, frozen=True):
    """From a picture to `[C, H, W]`: EXIF orientation, colour mode, then `steps` in order.

    Resizing and cropping come first, on 8-bit pixels, and must leave one size whatever the picture's.
    """

    mode: Literal["RGB", "L"]
    exif_transpose: bool
    steps: tuple[Step, ...]

    def __post_init__(self) -> None:
        geometry = [isinstance(step, Resize | CenterCrop) for step in self.steps]
        _require(geometry == sorted(geometry, reverse=True), "resize and crop must come before rescale and normalize")
        _require(
            any(geometry) and self._fixes_size(self._last_geometry),
            "the last of resize and crop must give every picture one size, as center_crop or resize with fit exact do",
        )
        for step in self.steps:
            counts = {len(step.mean)} if isinstance(step, Normalize) else set()
            counts |= {len(step.fill)} if isinstance(step, CenterCrop) and step.fill else set()
            _require(counts <= {self.channels}, f"{step} does not fit {self.channels} channels")

    @staticmethod
    def _fixes_size(step: Resize | CenterCrop) -> bool:
        return isinstance(step, CenterCrop) or step.fit == "exact"

    @property
    def _last_geometry(self) -> Resize | CenterCrop:
        return [step for step in self.steps if isinstance(step, Resize | CenterCrop)][-1]

    @property
    def channels(self) -> int:
        return {"RGB": 3, "L": 1}[self.mode]

    @property
    def output_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what one picture becomes."""
        return self.channels, self._last_geometry.height, self._last_geometry.width


def preprocess_images(images: Sequence[str | Path | Image.Image], spec: Preprocess) -> np.ndarray:
    """float32 `[B, C, H, W]`, C-contiguous, from files or Pillow pictures. Raises ImageError.

    Pictures become `spec.mode` by Pillow's `convert`, as in torchvision's ImageFolder and transformers' `load_image`:
    transparency is dropped, CMYK is converted, 16-bit grey above 255 is white.
    """
    if not images:
        raise ImageError("no pictures", why="there is nothing to preprocess", do="name at least one")
    batch = np.empty((len(images), *spec.output_shape), dtype=np.float32)
    for index, image in enumerate(images):
        name = f"picture {index}" if isinstance(image, Image.Image) else str(image)
        picture = image if isinstance(image, Image.Image) else open_image(image)
        batch[index] = _array_of(_pixels_of(picture, spec, name), spec)
    return batch


def ends_of_pixels(spec: Preprocess) -> np.ndarray:
    """Return the least and the largest number that preprocessing makes of a pixel, float64 [2, C]."""
    ends = np.array([[0.0], [255.0]]).repeat(spec.channels, axis=1)
    for step in spec.steps:
        if isinstance(step, Rescale):
            ends = ends * step.factor
        elif isinstance(step, Normalize):
            ends = (ends - np.array(step.mean)) / np.array(step.std)
    return np.sort(ends, axis=0)


def _pixels_of(image: Image.Image, spec: Preprocess, name: str) -> Image.Image:
    try:
        if spec.exif_transpose:
            image = ImageOps.exif_transpose(image)
        image = image.convert(spec.mode)
        for step in spec.steps:
            if isinstance(step, Resize):
                image = _resize(image, step, name)
            elif isinstance(step, CenterCrop):
                image = _center_crop(image, step, name)
    except DAMAGE as error:
        raise ImageError(
            f"cannot convert {name} to {spec.mode}", why=str(error), do="save it as an ordinary PNG"
        ) from error
    except MemoryError as error:
        raise ImageError(
            f"{name} is too large",
            why=f"there is not enough memory to convert and resize its {image.width} x {image.height} pixels",
            do="scale it down first",
        ) from error
    return image


def _array_of(image: Image.Image, spec: Preprocess) -> np.ndarray:
    values = np.asarray(image, dtype=np.float32).reshape(image.height, image.width, spec.channels).transpose(2, 0, 1)
    for step in spec.steps:
        if isinstance(step, Rescale):
            values = values * np.float32(step.factor)
        elif isinstance(step, Normalize):
            mean, std = (np.asarray(numbers, dtype=np.float32).reshape(-1, 1, 1) for numbers in (step.mean, step.std))
            values = (values - mean) / std
    return values


def _resize(image: Image.Image, step: Resize, name: str) -> Image.Image:
    height, width = step.size_of(image.height, image.width)
    if min(height, width) < 1 or height * width > MOST_PIXELS:
        raise _extreme(image, name, f"resized to {width} x {height}")
    if (width, height) == image.size:
        return image
    if step.arithmetic == "pillow":
        return image.resize((width, height), FILTERS[step.interpolation])
    pixels = np.asarray(image).reshape(image.height, image.width, -1)
    resized = resize_as_torch(pixels, height, width, step.interpolation)
    return Image.fromarray(resized if image.mode == "RGB" else resized[..., 0])


def _extreme(image: Image.Image, name: str, what: str) -> ImageError:
    return ImageError(
        f"{name} has too extreme a shape",
        why=f"its {image.width} x {image.height} pixels would be {what}",
        do="crop it first",
    )


def _center_crop(image: Image.Image, step: CenterCrop, name: str) -> Image.Image:
    wide, high = max(image.width, step.width), max(image.height, step.height)
    if wide * high > max(MOST_PIXELS, image.width * image.height):
        raise _extreme(image, name, f"padded to {wide} x {high}")
    if (wide, high) != image.size:
        padded = Image.new(image.mode, (wide, high), _colour(step.fill))
        padded.paste(image, ((wide - image.width) // 2, (high - image.height) // 2))
        image = padded
    halve = round if step.rounding == "even" else int
    left, top = halve((wide - step.width) / 2), halve((high - step.height) / 2)
    return image.crop((left, top, left + step.width, top + step.height))


def _colour(fill: tuple[int, ...]) -> int | tuple[int, ...]:
    return fill[0] if len(fill) == 1 else fill or 0


def _require_size(height: int, width: int, what: str) -> None:
    small = 0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE and height * width <= MOST_PIXELS
    _require(small, f"{what} to {height} x {width}: a side is 1 to {MAX_SIDE}, and {MOST_PIXELS} pixels are the most")


def _require(holds: bool, message: str) -> None:
    """msgspec turns a ValueError raised while decoding into its ValidationError, with the place in the document."""
    if not holds:
        raise ValueError(message)
