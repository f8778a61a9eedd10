"""The class of a transformers model: what config.json names, or what --task asks for; never one that drops a head."""

from __future__ import annotations

import difflib
from typing import Any

from trtship.errors import CheckpointError, SourceError, SpecError

TASKS = {
    "image-classification": "AutoModelForImageClassification",
    "zero-shot-image-classification": "AutoModelForZeroShotImageClassification",
    "semantic-segmentation": "AutoModelForSemanticSegmentation",
    "instance-segmentation": "AutoModelForInstanceSegmentation",
    "universal-segmentation": "AutoModelForUniversalSegmentation",
    "image-segmentation": "AutoModelForImageSegmentation",
    "object-detection": "AutoModelForObjectDetection",
    "zero-shot-object-detection": "AutoModelForZeroShotObjectDetection",
    "depth-estimation": "AutoModelForDepthEstimation",
    "normal-estimation": "AutoModelForNormalEstimation",
    "pose-estimation": "AutoModelForPoseEstimation",
    "keypoint-detection": "AutoModelForKeypointDetection",
    "keypoint-matching": "AutoModelForKeypointMatching",
    "image-matting": "AutoModelForImageMatting",
    "image-to-image": "AutoModelForImageToImage",
    "masked-image-modeling": "AutoModelForMaskedImageModeling",
    "mask-generation": "AutoModelForMaskGeneration",
    "video-classification": "AutoModelForVideoClassification",
    "feature-extraction": "AutoModel",
    "backbone": "AutoBackbone",
}
"""The class of transformers that knows a task's models, by the task's name in `--task`."""

MAX_KEYS_SHOWN = 10
# numbers that older versions saved, and that inference does not read or the class computes itself
HARMLESS_KEYS = ("num_batches_tracked", "position_ids")


def check_task(task: str | None) -> None:
    """Check that a task's name is known, without importing transformers.

    Raises:
        SpecError: If it is not.
    """
    if task is not None and task not in TASKS:
        near = difflib.get_close_matches(task, TASKS, n=1, cutoff=0.4)
        raise SpecError(
            f"there is no task {task!r}",
            why=f"the tasks are {', '.join(TASKS)}",
            do=f"for example --task {near[0] if near else 'image-classification'}",
        )


def class_for(transformers: Any, config: Any, task: str | None, source: str) -> Any:
    """Return the class to make the model of.

    Args:
        transformers: The package.
        config: The model's config.
        task: What `--task` says, or None.
        source: The source as typed, for messages.

    Returns:
        The class that `task` means for this type of model; without a task, the one that `architectures` in config.json
        names; without both, the only class that this type of model has.

    Raises:
        SpecError: If the type of model has no class for the task.
        SourceError: If config.json names no class that is known, or several, or one of another type of model.
    """
    if getattr(config, "quantization_config", None) is not None:
        raise SourceError(
            f"{source} has quantized weights",
            why="its config.json has a quantization_config, and such weights need the library that wrote them",
            do="use the model before it was quantized; --precision int8 or fp8 quantizes it for TensorRT",
        )
    by_task = _classes_by_task(transformers, config)
    if task is not None:
        if task not in by_task:
            raise SpecError(
                f"--task {task}: {config.model_type} models have no class for it",
                why=f"transformers has them for {', '.join(by_task) or 'no task'}",
                do="choose one of these tasks" if by_task else "use another source",
            )
        return by_task[task]
    named = [str(name) for name in getattr(config, "architectures", None) or []]
    if len(set(named)) == 1:
        return _class_named(transformers, config, named[0], source, by_task)
    distinct = {cls.__name__: cls for cls in by_task.values()}
    if not named and len(distinct) == 1:
        return next(iter(distinct.values()))
    raise SourceError(
        f"the class of {source} is not known",
        why=f"its config.json names {', '.join(named) or 'none'} in architectures, where one is needed",
        do=_do_name_task(by_task),
    )


def check_found(source: str, cls: Any, found: Any) -> None:
    """Check what `from_pretrained` reports: transformers drops keys, and fills missing ones with random numbers.

    Tied weights, and keys that the class declares it ignores (`_keys_to_ignore_on_load_missing` and
    `_keys_to_ignore_on_load_unexpected`), are not in the report.

    Args:
        source: The source as typed, for messages.
        cls: The class that was loaded.
        found: What `output_loading_info=True` gives.

    Raises:
        CheckpointError: If a weight is missing, left over, or of another shape.
    """
    mismatched = sorted(str(item[0] if isinstance(item, tuple) else item) for item in found["mismatched_keys"])
    lists = {
        "missing from the weights": _telling(found["missing_keys"]),
        "unknown to the model": _telling(found["unexpected_keys"]),
        "of another shape": mismatched,
        "not loaded": sorted(found.get("error_msgs") or []),
    }
    if any(lists.values()):
        raise CheckpointError(
            f"the weights of {source} do not fit the model",
            why=f"{cls.__name__}: "
            + "; ".join(
                f"{len(keys)} {what}: {', '.join(keys[:MAX_KEYS_SHOWN])}"
                + (f" and {len(keys) - MAX_KEYS_SHOWN} more" if keys[MAX_KEYS_SHOWN:] else "")
                for what, keys in lists.items()
                if keys
            ),
            do="check config.json (architectures), --task, --model-arg and --input against how the weights were "
            f"trained; to leave a head out on purpose, load transformers.{cls.__name__} and save_pretrained it",
        )


def _telling(keys: Any) -> list[str]:
    return sorted(key for key in keys if key.rpartition(".")[2] not in HARMLESS_KEYS)


def _classes_by_task(transformers: Any, config: Any) -> dict[str, Any]:
    """The class for each task that transformers has one for, for this type of config."""
    get = transformers.models.auto.auto_factory._get_model_class
    found: dict[str, Any] = {}
    for task, name in TASKS.items():
        mapping = getattr(getattr(transformers, name, None), "_model_mapping", None)
        if mapping is not None and type(config) in mapping.keys():  # noqa: SIM118 (its `in` may import more)
            named = _with_architectures(config)
            found[task] = get(named, mapping)
    return found


def _with_architectures(config: Any) -> Any:
    """`config`, with a list where `architectures` is None: transformers loops over it."""
    if getattr(config, "architectures", None) is None:
        config.architectures = []
    return config


def _class_named(transformers: Any, config: Any, name: str, source: str, by_task: dict[str, Any]) -> Any:
    cls = getattr(transformers, name, None) if name.isidentifier() else None
    if not isinstance(cls, type) or not issubclass(cls, transformers.PreTrainedModel):
        raise SourceError(
            f"transformers {transformers.__version__} has no model class {name!r}",
            why=f"the config.json of {source} names it, and code that comes with a model is never run",
            do=f"install the version that has it, or {_do_name_task(by_task)}",
        )
    wanted = getattr(cls, "config_class", None)
    if wanted is None or not isinstance(config, wanted):
        raise SourceError(
            f"the config.json of {source} contradicts itself",
            why=f"it names the class {name}, which takes a {getattr(wanted, '__name__', 'config of its own')}, "
            f"and the type {config.model_type}",
            do="write it again with save_pretrained",
        )
    return cls


def _do_name_task(by_task: dict[str, Any]) -> str:
    return (
        f"say what the model is for: --task {' or '.join(by_task)}"
        if by_task
        else "load it in a factory (file.py:factory)"
    )
