"""`torchvision/NAME`: models of torchvision."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

from trtship.needs import need
from trtship.preprocess import FILTERS, CenterCrop, Normalize, Preprocess, Rescale, Resize
from trtship.progress import SILENT, Progress
from trtship.sources.base import PrefixSource
from trtship.sources.build import build, unknown_model
from trtship.sources.finish import finish
from trtship.sources.inputs import fixed_sides, image_spec, no_inputs, required_names
from trtship.sources.loaded import LoadedModel
from trtship.sources.options import SourceOptions


class TorchvisionSource(PrefixSource):
    kind: ClassVar[str] = "torchvision"

    def fingerprint(self, options: SourceOptions) -> dict[str, str] | None:
        return None if options.pretrained else self.library_fingerprint(options, "torchvision", "torch")

    def load(self, options: SourceOptions, progress: Progress = SILENT) -> LoadedModel:
        models = need("torchvision.models", purpose=f"loading {options.source}")
        if self.name not in models.list_models():
            raise unknown_model(options.source, self.name, models.list_models())
        weights = models.get_model_weights(self.name).DEFAULT
        kwargs = options.model_kwargs()
        if "weights_backbone" in inspect.signature(models.get_model_builder(self.name)).parameters:
            kwargs.setdefault("weights_backbone", None)  # its default fetches them, asked or not
        with progress.stage("load", options.source):
            module = build(
                options, lambda: models.get_model(self.name, weights=weights if options.pretrained else None, **kwargs)
            )
            notes = self.load_weights(module, options)
            _, sides = fixed_sides(
                options.inputs[0] if len(options.inputs) == 1 and len(options.inputs[0].shape) == 4 else None
            )
            preprocess, more = preprocess_of(weights.transforms(), sides or _square(kwargs.get("image_size")))
            if not options.inputs and preprocess is None:
                raise no_inputs(options.source, required_names(module))
            return finish(
                options.source,
                module,
                options.inputs or (image_spec("input", *preprocess.output_shape),) if preprocess else options.inputs,
                progress=progress,
                preprocess=preprocess,
                labels=tuple(weights.meta["categories"])
                if options.pretrained and "categories" in weights.meta
                else None,
                notes=(*notes, *more),
                facts=self.library_facts(options, "torchvision", "torch"),
            )


def preprocess_of(preset: Any, sides: tuple[int, int] | None = None) -> tuple[Preprocess | None, list[str]]:
    """`torchvision.transforms._presets.ImageClassification` as steps, and notes; None for other presets.

    `sides` (height, width) takes the place of its crop, with the resize before it in the same proportion.
    """
    if type(preset).__name__ != "ImageClassification" or preset.interpolation.value not in FILTERS:
        return None, [f"preprocessing: none, torchvision's is a {type(preset).__name__}, not one for classification"]
    (crop,), (resize,) = preset.crop_size, preset.resize_size
    height, width = sides or (crop, crop)
    notes = []
    if (height, width) != (crop, crop):
        resize = int(resize * max(height, width) / crop)
        notes.append(f"preprocessing: torchvision's, scaled from {crop} to {height} x {width} pixels")
    steps = (
        Resize(height=resize, width=resize, fit="shortest", interpolation=preset.interpolation.value),
        CenterCrop(height=height, width=width),
        Rescale(factor=1 / 255),
        Normalize(mean=tuple(preset.mean), std=tuple(preset.std)),
    )
    return Preprocess(mode="RGB", exif_transpose=False, steps=steps), notes


def _square(side: int | None) -> tuple[int, int] | None:
    return (side, side) if side else None
