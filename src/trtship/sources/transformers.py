"""`transformers/PATH_OR_NAME`: a folder written by `save_pretrained`, or a name on the Hugging Face hub.

The model is of the class that its config.json names, or that --task means; with weights that do not fill it, or that it
does not take, loading fails.

Code that comes with a model is never run (`trust_remote_code` stays False). The hub is asked with --pretrained only;
without, a name is looked up in its local cache.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from trtship.errors import MachineError, SourceError, SpecError
from trtship.files import sha256_of
from trtship.needs import need
from trtship.preprocess import Preprocess
from trtship.progress import SILENT, Progress
from trtship.sources.base import PrefixSource
from trtship.sources.build import build, hugging_face_hub
from trtship.sources.checkpoint_files import check_checkpoint_file, check_plain_weights
from trtship.sources.finish import finish
from trtship.sources.inputs import fixed_sides, image_spec, no_inputs, only_image, required_names
from trtship.sources.loaded import LoadedModel
from trtship.sources.options import SourceOptions
from trtship.sources.transformers_classes import check_found, check_task, class_for
from trtship.sources.transformers_images import image_processor, preprocess_of
from trtship.spec import TensorSpec

PACKAGES = ("transformers", "torch", "torchvision")
WEIGHT_SUFFIXES = (".safetensors", ".bin")
# transformers.utils.SAFE_WEIGHTS_NAME, WEIGHTS_NAME, their shards and their indexes
WEIGHT_FILES = ("model*.safetensors", "pytorch_model*.bin", "*.safetensors.index.json", "pytorch_model*.bin.index.json")


class TransformersSource(PrefixSource):
    kind: ClassVar[str] = "transformers"
    takes_task: ClassVar[bool] = True

    @property
    def folder(self) -> Path | None:
        path = Path(self.name).expanduser()
        return path if path.is_dir() else None

    @property
    def has_weights(self) -> bool:
        """Whether the name is a folder with weight files in it."""
        return self.folder is not None and any(_weight_files(self.folder))

    def check_files(self, options: SourceOptions) -> None:
        check_task(options.task)
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
        cls = class_for(transformers, config, options.task, options.source)
        float32 = need("torch", purpose="loading a model").float32
        if not options.pretrained and not self._brings_weights(options):
            return cls._from_config(config, dtype=float32)
        for file in [] if self.folder is None else _weight_files(self.folder):
            if file.suffix == ".json":
                check_checkpoint_file(file)
            else:
                check_plain_weights(file)
        model, found = cls.from_pretrained(
            self._where,
            config=config,
            dtype=float32,
            local_files_only=not options.pretrained,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
        check_found(options.source, cls, found)
        return model


def _weight_files(folder: Path) -> list[Path]:
    return sorted({file for pattern in WEIGHT_FILES for file in folder.glob(pattern)})


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
    """A classifier's class names, unless they are transformers' placeholders LABEL_0, LABEL_1 ..."""
    named = getattr(config, "id2label", None) or {}
    names = [str(named.get(index)) for index in range(len(named))]
    placeholders = all(name == f"LABEL_{index}" for index, name in enumerate(names))
    return None if placeholders or "ForImageClassification" not in type(module).__name__ else tuple(names)


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
