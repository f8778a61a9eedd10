"""`timm/NAME`: models of PyTorch Image Models."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from trtship.errors import SpecError
from trtship.needs import need
from trtship.preprocess import FILTERS, CenterCrop, Fit, Normalize, Preprocess, Rescale, Resize, Step
from trtship.progress import SILENT, Progress
from trtship.sources.base import PrefixSource
from trtship.sources.build import build, hugging_face_hub, unknown_model
from trtship.sources.finish import finish
from trtship.sources.inputs import fixed_sides, image_spec, only_image
from trtship.sources.loaded import LoadedModel
from trtship.sources.options import SourceOptions
from trtship.spec import TensorSpec


class TimmSource(PrefixSource):
    kind: ClassVar[str] = "timm"

    def fingerprint(self, options: SourceOptions) -> dict[str, str] | None:
        return None if options.pretrained else self.library_fingerprint(options, "timm", "torch", "torchvision")

    def load(self, options: SourceOptions, progress: Progress = SILENT) -> LoadedModel:
        timm = need("timm", purpose=f"loading {options.source}")
        if not timm.is_model(self.name):
            raise unknown_model(options.source, self.name, timm.list_models())
        architecture, _, tag = self.name.partition(".")
        tagged = timm.list_models(f"{architecture}.*", include_tags=True)
        if tag and self.name not in tagged:
            raise unknown_model(options.source, self.name, [architecture, *tagged])
        image = only_image(options.inputs, options.source)
        kwargs = _with_input(options.model_kwargs(), image, timm.get_pretrained_cfg(self.name))
        with progress.stage("load", options.source):
            module = self._create(timm, options, kwargs)
            notes = self.load_weights(module, options)
            spec = image or image_spec("input", *_input_size(kwargs, module.pretrained_cfg))
            config = _data_config(timm, module, kwargs, spec)
            preprocess, more = preprocess_of(config)
            labels = _labels(timm, module) if options.pretrained else None
            return finish(
                options.source,
                module,
                (spec,),
                progress=progress,
                preprocess=preprocess,
                labels=labels,
                notes=(*notes, *more),
                facts=self.library_facts(options, "timm", "torch", "torchvision"),
            )

    def _create(self, timm: Any, options: SourceOptions, kwargs: dict[str, Any]) -> Any:
        if not options.pretrained:
            return build(options, lambda: timm.create_model(self.name, pretrained=False, **kwargs))
        with hugging_face_hub():
            return build(options, lambda: timm.create_model(self.name, pretrained=True, **kwargs))


def preprocess_of(config: Mapping[str, Any]) -> tuple[Preprocess | None, list[str]]:
    """timm's evaluation transform (`timm.data.transforms_factory.transforms_imagenet_eval`) for a data config as
    `resolve_data_config` gives it, or None and a note on why it cannot be written down.

    One channel is mode L, with mean and std averaged as timm's own loader does (`timm.data.loader.adapt_to_chs`).
    """
    channels, height, width = config["input_size"]
    if channels not in (1, 3) or config["interpolation"] not in FILTERS:
        return None, [
            f"preprocessing: none, timm's for {channels} channels, {config['interpolation']}, is not for pictures"
        ]
    mean, std = (_for_channels(config[key], channels) for key in ("mean", "std"))
    scaled = [math.floor(side / config["crop_pct"]) for side in (height, width)]
    fill: tuple[int, ...] = ()
    if config["crop_mode"] == "squash":
        fit: Fit = "exact"
    elif config["crop_mode"] == "border":
        fit, fill = "contain", tuple(round(255 * value) for value in mean)
    else:
        fit = "shortest" if scaled[0] == scaled[1] else "cover"
    steps: tuple[Step, ...] = (
        Resize(height=scaled[0], width=scaled[1], fit=fit, interpolation=config["interpolation"]),
        CenterCrop(height=height, width=width, fill=fill),
        Rescale(factor=1 / 255),
        Normalize(mean=mean, std=std),
    )
    return Preprocess(mode="RGB" if channels == 3 else "L", exif_transpose=False, steps=steps), []


def _for_channels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    return tuple(values) if len(values) == channels else (sum(values) / len(values),) * channels


def _with_input(kwargs: dict[str, Any], image: TensorSpec | None, config: Any) -> dict[str, Any]:
    """The model's arguments, with the channels and the size that `--input` asks for."""
    channels, sides = fixed_sides(image)
    wanted: dict[str, Any] = {}
    if channels not in (None, config.input_size[0] if config else 3):
        wanted["in_chans"] = channels
    if sides and config and config.fixed_input_size:
        wanted["img_size"] = sides
    for key, value in wanted.items():
        if key in kwargs and _pair(kwargs[key]) != _pair(value):
            raise SpecError(
                f"--input {image} contradicts --model-arg {key}={kwargs[key]}",
                why=f"it asks for {key}={value}",
                do="keep one of them",
            )
    return wanted | kwargs


def _input_size(kwargs: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[int, int, int]:
    channels, height, width = config.get("input_size", (3, 224, 224))
    height, width = _pair(kwargs.get("img_size", (height, width)))
    return kwargs.get("in_chans", channels), height, width


def _pair(size: Any) -> tuple[Any, ...]:
    return tuple(size) if isinstance(size, list | tuple) else (size, size)


def _data_config(timm: Any, module: Any, kwargs: Mapping[str, Any], spec: TensorSpec) -> dict[str, Any]:
    channels, height, width = _input_size(kwargs, module.pretrained_cfg)
    given, sides = fixed_sides(spec)
    config: dict[str, Any] = timm.data.resolve_data_config(pretrained_cfg=module.pretrained_cfg)
    return config | {"input_size": (given or channels, *(sides or (height, width)))}


def _labels(timm: Any, module: Any) -> tuple[str, ...] | None:
    """ImageNet's class descriptions, where the pretrained head still has as many classes as its training set."""
    config = module.pretrained_cfg
    if module.num_classes != config.get("num_classes"):
        return None
    if config.get("label_descriptions") or config.get("label_names"):
        named = config.get("label_descriptions") or config["label_names"]
        return tuple(named[name] for name in config["label_names"]) if isinstance(named, Mapping) else tuple(named)
    subset = timm.data.infer_imagenet_subset(config)
    return tuple(timm.data.ImageNetInfo(subset).label_descriptions()) if subset else None
