"""Keys of a state dict against a model's: prefixes of wrappers are removed where the keys then fit, and only there."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trtship.sources.checkpoint_tensors import converted, dense, form, short, why_unusable
from trtship.sources.checkpoint_trees import printable

if TYPE_CHECKING:
    import torch

# names that wrappers put into keys: DataParallel, DistributedDataParallel and AveragedModel; torch.compile;
# LightningModules that hold the model as `model`; FullyShardedDataParallel; activation checkpointing
WRAPPERS = ("module", "_orig_mod", "model", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# numbers that wrappers save beside the weights they average: AveragedModel, mmengine, ema_pytorch, timm
COUNTERS = ("n_averaged", "steps", "step", "initted", "num_updates", "updates", "decay")
MAX_PREFIX = 6
SHOWN = 10


@dataclass(frozen=True)
class ModelKeys:
    """What a module's state dict takes.

    Attributes:
        tensors: Its tensors by key, as `state_dict(keep_vars=True)` gives them.
        computed: Buffers that are not in its state dict, which the module computes itself.
    """

    tensors: Mapping[str, Any]
    computed: Mapping[str, torch.Tensor]

    @classmethod
    def of(cls, module: torch.nn.Module) -> ModelKeys:
        """Return the keys of `module`."""
        tensors = module.state_dict(keep_vars=True)
        buffers = module.named_buffers(remove_duplicate=False)
        return cls(tensors, {key: buffer for key, buffer in buffers if key not in tensors})

    def twins(self) -> dict[str, list[str]]:
        """Return, for each key of a tensor that has several (tied weights), all its keys."""
        by_id: dict[int, list[str]] = {}
        for key, tensor in self.tensors.items():
            by_id.setdefault(id(tensor), []).append(key)
        return {key: keys for keys in by_id.values() if len(keys) > 1 for key in keys}


@dataclass
class Fit:
    """How a state dict's keys become a model's, and what is wrong with that.

    Attributes:
        names: The model's key for each key of the file that is used.
        removed: What was done to keys, in words; empty where they are used as they are.
        tensors: Values by the model's key, in its dtypes; only where nothing is wrong.
        notes: What was converted, dropped or filled.
        missing, unknown, wrong: The problems, as keys in the model's form.
    """

    names: dict[str, str]
    removed: str = ""
    tensors: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    has_counter: bool = False

    @property
    def is_exact(self) -> bool:
        """Whether every key of both sides is accounted for."""
        return not (self.missing or self.unknown or self.wrong)

    @property
    def problems(self) -> str:
        """The problems in one line."""
        lists = {"missing from the file": self.missing, "unknown to the model": self.unknown}
        lists["of another shape or kind"] = self.wrong
        return "; ".join(f"{len(keys)} {what}: {_first(keys)}" for what, keys in lists.items() if keys)


def fit(state: Mapping[str, Any], model: ModelKeys) -> Fit:
    """Return how a state dict's keys fit a model: exactly where they can, else the way that comes nearest.

    Keys that fit as they are, are used so: a model may have an attribute named `module`. Otherwise each way of
    removing a common prefix and wrappers' names is tried, the least first. At most one can fit: what is removed decides
    how long all names are together, and the model has no name that is left out.
    """
    nearest = _judge({key: key for key in state}, "", state, model)
    if nearest.is_exact or not _may_fit(state, model):
        return nearest
    best = _known(nearest.names, model)
    for names, removed in _renamings(state, model):
        known = _known(names, model)
        if known >= best:
            judged = _judge(names, removed, state, model)
            if judged.is_exact:
                return judged
            if known > best:
                nearest, best = judged, known
    return nearest


def _known(names: Mapping[str, str], model: ModelKeys) -> int:
    return sum(name in model.tensors for name in names.values())


def _may_fit(state: Mapping[str, Any], model: ModelKeys) -> bool:
    """Whether renaming can help: bounds the work for a file of millions of keys, or of endless ones."""
    longest = max((len(key) for key in model.tensors), default=0)
    most = 2 * len(model.tensors) + len(model.computed) + len(COUNTERS)
    return len(state) <= most and all(len(key) <= longest + 200 for key in state)


def _renamings(state: Mapping[str, Any], model: ModelKeys) -> Iterator[tuple[dict[str, str], str]]:
    """Names in the model's form for the keys of the file, and what was removed; least removed first."""
    counters = {key: key for key in state if key in COUNTERS and key not in model.tensors}
    parts = {key: key.split(".") for key in state if key not in counters}
    if not parts:
        return
    common = _common_prefix(list(parts.values()))
    cut = [{key: segments[depth:] for key, segments in parts.items()} for depth in range(len(common) + 1)]
    prefixes = [[f"removed '{'.'.join(common[:depth])}.' from every key"] if depth else [] for depth in range(len(cut))]
    for rest, without in zip(cut, prefixes, strict=True):
        yield from _one(rest, counters, ".".join, without)
    for rest, without in zip(cut, prefixes, strict=True):
        inside = [wrapper for wrapper in WRAPPERS if any(wrapper in segments for segments in rest.values())]
        for count in range(1, len(inside) + 1):
            for gone in itertools.combinations(inside, count):
                more = [f"removed '{wrapper}.' inside keys" for wrapper in gone]
                yield from _one(rest, counters, _remover(gone), without + more)
    targets: dict[str, list[str]] = {}
    for name in model.tensors:
        targets.setdefault(_bare(name.split(".")), []).append(name)
    if all(len(names) == 1 for names in targets.values()):
        only = {bare: names[0] for bare, names in targets.items()}
        for rest, without in zip(cut, prefixes, strict=True):
            yield from _one(rest, counters, _finder(only), [*without, "matched keys without wrappers' names"])


def _one(
    rest: Mapping[str, list[str]], counters: Mapping[str, str], rename: Callable[[list[str]], str], removed: list[str]
) -> Iterator[tuple[dict[str, str], str]]:
    names = {key: rename(segments) for key, segments in rest.items()}
    if len(set(names.values())) == len(names) and all(names.values()):
        yield {**names, **counters}, " and ".join(removed)


def _remover(gone: tuple[str, ...]) -> Callable[[list[str]], str]:
    return lambda segments: ".".join(part for part in segments if part not in gone)


def _finder(only: Mapping[str, str]) -> Callable[[list[str]], str]:
    return lambda segments: only.get(_bare(segments), ".".join(segments))


def _bare(segments: list[str]) -> str:
    return ".".join(part for part in segments if part not in WRAPPERS)


def _common_prefix(keys: list[list[str]]) -> list[str]:
    """The leading parts that all keys share; the last part of a key is its tensor's own name."""
    common: list[str] = []
    for parts in zip(*(key[:-1] for key in keys), strict=False):
        if len(set(parts)) > 1 or len(common) == MAX_PREFIX:
            break
        common.append(parts[0])
    return common


def _judge(names: dict[str, str], removed: str, state: Mapping[str, Any], model: ModelKeys) -> Fit:
    """What is wrong with these names, and the converted tensors where nothing is."""
    judged = Fit(names, removed)
    values = {names[key]: value for key, value in state.items()}
    casts: set[str] = set()
    kept: list[str] = []
    for name, value in values.items():
        if name in model.tensors:
            _take(judged, name, value, model.tensors[name], casts, kept)
    _judge_unknown(judged, values, model)
    _judge_missing(judged, values, model)
    if judged.is_exact:
        _judge_tied(judged, model)
    judged.notes += [f"checkpoint: cast {cast}" for cast in sorted(casts)]
    if kept:
        judged.notes.append(f"checkpoint: kept the model's own {_first(kept)}: the file's is no exact integer")
    return judged


def _take(judged: Fit, name: str, value: Any, expected: Any, casts: set[str], kept: list[str]) -> None:
    """Convert one tensor to what the model has under `name`."""
    import torch

    if not isinstance(expected, torch.Tensor) or name.endswith("_extra_state"):
        judged.tensors[name] = value
        return
    problem = why_unusable(value)
    lazy = torch.nn.parameter.is_lazy(expected)
    if problem is not None or (not lazy and value.shape != expected.shape):
        said = f"{form(value)}, which {problem}" if problem else form(value)
        judged.wrong.append(f"{name} (file {said}, model {'not initialised' if lazy else form(expected)})")
        return
    try:
        plain = dense(value) if not lazy else value.detach()
        result = converted(plain, expected.dtype)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        judged.wrong.append(f"{name} (file {form(value)}: {printable(str(error).splitlines()[0])})")
        return
    if result is not None:
        judged.tensors[name] = result
    elif _counts_batches(name) and value.numel() == 1:
        kept.append(name)
    elif value.is_floating_point() and not expected.is_floating_point() and _equal_as(expected, plain):
        judged.tensors[name] = expected.detach()  # rounded in the file; the model computes it itself
    else:
        judged.wrong.append(f"{name} (file {form(value)}, model {form(expected)})")
        return
    if value.dtype != expected.dtype and result is not None:
        casts.add(f"{short(value.dtype)} to {short(expected.dtype)}")


def _judge_unknown(judged: Fit, values: Mapping[str, Any], model: ModelKeys) -> None:
    repeated = batches = 0
    for name, value in values.items():
        if name in model.tensors:
            continue
        if name in model.computed and why_unusable(value) is None and _equal_as(model.computed[name], value):
            repeated += 1
        elif _counts_batches(name) and _mean_of(name) in values:
            batches += 1
        elif _is_counter(name, value, judged.removed):
            judged.has_counter = True
            judged.notes.append(f"checkpoint: dropped {name!r}, a counter beside averaged weights")
        else:
            judged.unknown.append(printable(name))
    if repeated:
        judged.notes.append(f"checkpoint: dropped {repeated} buffers that the model computes itself to the same values")
    if batches:
        judged.notes.append(f"checkpoint: dropped {batches} num_batches_tracked, which inference does not use")


def _judge_missing(judged: Fit, values: Mapping[str, Any], model: ModelKeys) -> None:
    twins = model.twins()
    absent = [name for name in model.tensors if name not in values]
    tied = [name for name in absent if any(other in values for other in twins.get(name, ()))]
    batches = [name for name in absent if _counts_batches(name) and _mean_of(name) in values]
    judged.missing += [name for name in absent if name not in {*tied, *batches}]
    if tied:
        judged.notes.append(f"checkpoint: {_first(tied)} filled from the tensors that the model ties them to")
    if batches:
        judged.notes.append(f"checkpoint: without {len(batches)} num_batches_tracked, which inference does not use")


def _judge_tied(judged: Fit, model: ModelKeys) -> None:
    """The model has one tensor under several keys: the file must not have different ones."""
    import torch

    for name, keys in model.twins().items():
        other = next((key for key in keys if key in judged.tensors), name)
        if name == other or name not in judged.tensors:
            continue
        first, second = judged.tensors[other], judged.tensors[name]
        if isinstance(first, torch.Tensor) and not torch.equal(first, second):
            judged.wrong.append(f"{name} (the model ties it to {other}, and the file has other values)")


def _counts_batches(name: str) -> bool:
    return name.rpartition(".")[2] == "num_batches_tracked"


def _mean_of(name: str) -> str:
    return f"{name.removesuffix('num_batches_tracked')}running_mean"


def _is_counter(name: str, value: Any, removed: str) -> bool:
    """Whether this is a wrapper's number: AveragedModel's name is its own, others count only beside a prefix."""
    known = name == "n_averaged" or (name in COUNTERS and "from every key" in removed)
    return known and why_unusable(value) is None and value.numel() == 1


def _equal_as(own: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether the file's values are the model's own, in the file's or the model's dtype."""
    import torch

    if own.shape != value.shape or own.dtype.is_complex != value.dtype.is_complex:
        return False
    try:
        value = dense(value)
        same = converted(value, own.dtype)
        return torch.equal(own.to(value.dtype), value) or (same is not None and torch.equal(own, same))
    except (RuntimeError, NotImplementedError):
        return False


def _first(keys: list[str]) -> str:
    return ", ".join(keys[:SHOWN]) + (f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else "")
