"""`transformers/PATH_OR_NAME`: a folder written by `save_pretrained`, or a name on the Hugging Face hub.

Code that comes with a model is never run (`trust_remote_code` stays False). The hub is asked with --pretrained only;
without, a name is looked up in its local cache.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from trtship.errors import CheckpointError, MachineError, SourceError, SpecError
from trtship.files import sha256_of
from trtship.needs import need
from trtship.preprocess import Preprocess
from trtship.progress import SILENT, Progress
from trtship.sources.base import PrefixSource
from trtship.sources.build import build, hugging_face_hub
from trtship.sources.finish import finish
from trtship.sources.inputs import fixed_sides, image_spec, no_inputs, only_image, required_names
from trtship.sources.loaded import LoadedModel
from trtship.sources.options import SourceOptions
from trtship.sources.transformers_images import image_processor, preprocess_of
from trtship.spec import TensorSpec

PACKAGES = ("transformers", "torch", "torchvision")
WEIGHT_SUFFIXES = (".safetensors", ".bin")
SHOWN = 10


class TransformersSource(PrefixSource):
    kind: ClassVar[str] = "transformers"

    @property
    def folder(self) -> Path | None:
        path = Path(self.name).expanduser()
        return path if path.is_dir() else None

    @property
    def has_weights(self) -> bool:
        """Whether the name is a folder with weight files in it."""
        return self.folder is not None and any(file.suffix in WEIGHT_SUFFIXES for file in self.folder.iterdir())

    def check_files(self, options: SourceOptions) -> None:
        if self.folder is None and (self.name[0] in "/.~" or self.name.count("/") > 1):
            raise SourceError(f"there is no folder {self.name}", why="no such folder", do="check the path")
        if self.folder is not None and not (self.folder / "config.json").is_file():
            raise SourceError(
                f"{self.name} is no transformers model", why="it has no config.json", do="write it with save_pretrained"
            )

    def check_weights(self, options: SourceOptions) -> None:
        if self.folder is not None and options.pretrained:
            raise SpecError(
                f"--pretrained does not apply to the folder {self.name}",
                why="it asks the hub, by name",
                do="leave it out: weights in the folder are used",
            )
        if not self.has_weights:
            super().check_weights(options)

    def fingerprint(self, options: SourceOptions) -> dict[str, str] | None:
        if self.folder is None:
            return None
        suffixes = (".json", *(WEIGHT_SUFFIXES if self._brings_weights(options) else ()))
        files = sorted(file for file in self.folder.iterdir() if file.suffix in suffixes)
        return self.library_fingerprint(options, *PACKAGES) | {f"file {file.name}": sha256_of(file) for file in files}

    def load(self, options: SourceOptions, progress: Progress = SILENT) -> LoadedModel:
        transformers = need("transformers", purpose=f"loading {options.source}")
        with progress.stage("load", options.source), _quiet(transformers):
            with hugging_face_hub() if options.pretrained else contextlib.nullcontext():
                config = build(options, lambda: self._config(transformers, options))
                module = build(options, lambda: self._model(transformers, config, options))
                processor, is_saved = build(
                    options, lambda: image_processor(transformers, self._where, config, ask_hub=options.pretrained)
                )
            notes = self.load_weights(module, options)
            facts = self.library_facts(options, *PACKAGES)
            if getattr(module, "main_input_name", "") != "pixel_values" or len(options.inputs) > 1:
                if not options.inputs:
                    raise no_inputs(options.source, required_names(module))
                return finish(
                    options.source, module, options.inputs, progress=progress, notes=tuple(notes), facts=facts
                )
            image, preprocess, more = _image_and_preprocess(options, config, processor, is_saved)
            return finish(
                options.source,
                module,
                (image,),
                progress=progress,
                preprocess=preprocess,
                labels=_labels(config, module),
                notes=(*notes, *more),
                facts=facts,
                keywords=("pixel_values",),
            )

    @property
    def _where(self) -> str:
        return str(self.folder or self.name)

    def _brings_weights(self, options: SourceOptions) -> bool:
        return self.has_weights and options.checkpoint is None and not options.random_weights

    def _config(self, transformers: Any, options: SourceOptions) -> Any:
        """The model's config, changed as --model-arg and --input ask."""
        try:
            config = transformers.AutoConfig.from_pretrained(
                self._where, local_files_only=not options.pretrained, trust_remote_code=False
            )
        except OSError as error:
            if options.pretrained or self.folder is not None:
                raise
            raise MachineError(
                f"there is no {self.name} here",
                why="it is no folder, its config is not in the hub's local cache, and only --pretrained asks the hub",
                do="--pretrained, or name a folder written by save_pretrained",
            ) from error
        for name, value in options.model_kwargs().items():
            if not hasattr(config, name):
                raise SpecError(
                    f"--model-arg {name}: {type(config).__name__} has no {name}",
                    why=f"it has {', '.join(sorted(config.to_diff_dict()))} and others",
                    do="check the name",
                )
            setattr(config, name, value)
        channels, sides = (
            fixed_sides(only_image(options.inputs, options.source)) if len(options.inputs) == 1 else (None, None)
        )
        if sides and hasattr(config, "image_size"):
            config.image_size = sides[0] if sides[0] == sides[1] else list(sides)
        if channels and hasattr(config, "num_channels"):
            config.num_channels = channels
        return config

    def _model(self, transformers: Any, config: Any, options: SourceOptions) -> Any:
        kind = _class_for(transformers, config)
        if not options.pretrained and not self._brings_weights(options):
            return kind.from_config(config, trust_remote_code=False)
        model, found = kind.from_pretrained(
            self._where,
            config=config,
            dtype=need("torch", purpose="loading a model").float32,
            local_files_only=not options.pretrained,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
        _check_found(options.source, found)
        return model


def _class_for(transformers: Any, config: Any) -> Any:
    """The classifier where the config knows one, unless its weights were saved from another architecture."""
    known = type(config) in transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
    saved = getattr(config, "architectures", None) or []
    if known and (not saved or any(name.endswith("ForImageClassification") for name in saved)):
        return transformers.AutoModelForImageClassification
    return transformers.AutoModel


def _check_found(source: str, found: Any) -> None:
    """transformers fills what is missing with random numbers; here that is an error."""
    mismatched = sorted(str(item[0] if isinstance(item, tuple) else item) for item in found["mismatched_keys"])
    lists = {
        "missing from the weights": sorted(found["missing_keys"]),
        "unknown to the model": sorted(found["unexpected_keys"]),
        "of another shape": mismatched,
    }
    if any(lists.values()):
        raise CheckpointError(
            f"the weights of {source} do not fit the model",
            why="; ".join(
                f"{len(keys)} {what}: {', '.join(keys[:SHOWN])}"
                + (f" and {len(keys) - SHOWN} more" if keys[SHOWN:] else "")
                for what, keys in lists.items()
                if keys
            ),
            do="check config.json, --model-arg and --input against how the weights were trained",
        )


def _image_and_preprocess(
    options: SourceOptions, config: Any, processor: Any, is_saved: bool
) -> tuple[TensorSpec, Preprocess | None, tuple[str, ...]]:
    """The input and how pictures become it, of the size that --input, else a saved processor, else the config says."""
    image = only_image(options.inputs, options.source)
    channels, asked = fixed_sides(image)
    size = getattr(config, "image_size", None)
    own = (size, size) if isinstance(size, int) else tuple(size) if size else None
    channels = channels or getattr(config, "num_channels", None) or 3
    preprocess, notes = preprocess_of(processor, channels, asked if asked or is_saved else own)
    if image is None and preprocess is not None:
        image = image_spec("input", *preprocess.output_shape)
    elif image is None and own is not None:
        image = image_spec("input", channels, *own)
    if image is None:
        raise no_inputs(options.source, ["input"])
    return image, preprocess, tuple(notes)


def _labels(config: Any, module: Any) -> tuple[str, ...] | None:
    """The config's class names, unless they are transformers' placeholders LABEL_0, LABEL_1 ..."""
    names = [str(config.id2label.get(index)) for index in range(len(config.id2label))]
    placeholders = all(name == f"LABEL_{index}" for index, name in enumerate(names))
    return None if placeholders or not hasattr(module, "classifier") else tuple(names)


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Without its bars and warnings: what they say is an error or a note here."""
    log = transformers.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()
