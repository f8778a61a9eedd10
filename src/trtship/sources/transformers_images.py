"""A transformers image processor as a Preprocess."""

from __future__ import annotations

from typing import Any

from PIL import Image

from trtship.needs import need
from trtship.preprocess import CenterCrop, Fit, Normalize, Preprocess, Rescale, Resize, Step
from trtship.resample import REACH

# what torchvision resizes tensors with
FILTERS_OF_TENSORS = ("nearest", "bilinear", "bicubic", "lanczos")
# ConvNextImageProcessor.resize crops below this size and warps from it on
CONVNEXT_WARPS_FROM = 384
# methods whose meaning the steps below write down; a processor that overrides one means something else
METHODS = ("resize", "center_crop", "rescale", "normalize", "rescale_and_normalize", "_preprocess")


def image_processor(transformers: Any, where: str, config: Any, *, ask_hub: bool) -> tuple[Any, bool]:
    """The processor saved with the model, and True; or its model type's own, or None, and False."""
    auto = transformers.models.auto.image_processing_auto
    if auto.get_image_processor_config(where, local_files_only=not ask_hub):
        return transformers.AutoImageProcessor.from_pretrained(
            where, local_files_only=not ask_hub, trust_remote_code=False, backend="torchvision"
        ), True
    name = (auto.IMAGE_PROCESSOR_MAPPING_NAMES.get(config.model_type) or {}).get("torchvision")
    return (getattr(transformers, name)() if name else None), False


def preprocess_of(processor: Any, channels: int, sides: tuple[int, int] | None) -> tuple[Preprocess | None, list[str]]:
    """The processor's steps for pictures of `channels`, and notes.

    Where given, `sides` (height, width) takes the place of its size, with a resize before a crop in proportion.
    None, with a note that says why, for processors that do something else. EXIF orientation is applied, as by
    `transformers.image_utils.load_image`. One channel is mode L, with mean and std averaged where there are three.
    """
    if processor is None:
        return None, ["preprocessing: none, transformers has no image processor for this model"]
    geometry = _geometry(processor, sides)
    if channels not in (1, 3) or geometry is None:
        return None, [f"preprocessing: none, {type(processor).__name__} does what the steps here cannot say"]
    steps = list(geometry)
    if processor.do_rescale:
        steps.append(Rescale(factor=float(processor.rescale_factor)))
    if processor.do_normalize:
        mean, std = (_for_channels(v, channels) for v in (processor.image_mean, processor.image_std))
        steps.append(Normalize(mean=mean, std=std))
    try:
        return Preprocess(mode="RGB" if channels == 3 else "L", exif_transpose=True, steps=tuple(steps)), []
    except ValueError as error:
        return None, [f"preprocessing: none, that of {type(processor).__name__} does not do: {error}"]


def _geometry(processor: Any, sides: tuple[int, int] | None) -> list[Step] | None:
    interpolation = Image.Resampling(processor.resample if processor.resample is not None else 2).name.lower()
    if processor.do_pad or interpolation not in FILTERS_OF_TENSORS:
        return None
    size = {key: value for key, value in dict(processor.size or {}).items() if value}
    if _is(processor, "ConvNextImageProcessor"):
        return (
            _convnext(size["shortest_edge"], processor.crop_pct, interpolation, sides) if processor.do_resize else None
        )
    if not _is_plain(processor):
        return None
    crop = dict(processor.crop_size or {}) if processor.do_center_crop else {}
    whole = crop or size
    if not {"height", "width"} <= set(whole):
        return None
    height, width = sides or (whole["height"], whole["width"])
    steps: list[Step] = []
    if processor.do_resize and set(size) == {"height", "width"}:
        scaled = (height * size["height"] // whole["height"], width * size["width"] // whole["width"])
        steps.append(_resize(*scaled, "exact", interpolation))
    elif processor.do_resize and set(size) == {"shortest_edge"}:
        edge = size["shortest_edge"] * max(height, width) // max(whole["height"], whole["width"])
        steps.append(_resize(edge, edge, "shortest", interpolation))
    elif processor.do_resize:
        return None
    if crop:
        steps.append(CenterCrop(height=height, width=width, rounding="down"))
    return steps


def _convnext(edge: int, crop_pct: float, interpolation: str, sides: tuple[int, int] | None) -> list[Step] | None:
    if sides and sides[0] != sides[1]:
        return None
    edge = sides[0] if sides else edge
    if edge >= CONVNEXT_WARPS_FROM:
        return [_resize(edge, edge, "exact", interpolation)]
    scaled = int(edge / crop_pct)
    return [
        _resize(scaled, scaled, "shortest", interpolation),
        CenterCrop(height=edge, width=edge, rounding="down"),
    ]


def _resize(height: int, width: int, fit: Fit, interpolation: Any) -> Resize:
    return Resize(
        height=height,
        width=width,
        fit=fit,
        interpolation=interpolation,
        arithmetic="torch" if interpolation in REACH else "pillow",
    )


def _is(processor: Any, name: str) -> bool:
    """Exactly this class of transformers: subclasses may do anything."""
    return type(processor).__name__ == name and type(processor).__module__.startswith("transformers.")


def _is_plain(processor: Any) -> bool:
    backend = need("transformers.image_processing_backends", purpose="reading an image processor").TorchvisionBackend
    return isinstance(processor, backend) and all(
        getattr(type(processor), method) is getattr(backend, method) for method in METHODS
    )


def _for_channels(values: Any, channels: int) -> tuple[float, ...]:
    listed = tuple(float(v) for v in values) if isinstance(values, list | tuple) else (float(values),) * channels
    return listed if len(listed) == channels or channels != 1 else (sum(listed) / len(listed),)
