"""Loading a checkpoint: the one state dict in the file that is meant, put into the module whole, or an error."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtship.errors import CheckpointError
from trtship.sources.checkpoint_files import opened_checkpoint
from trtship.sources.checkpoint_keys import Fit, ModelKeys, fit
from trtship.sources.checkpoint_trees import StateDict, is_average, printable, state_dicts, unnamed_averages
from trtship.sources.inputs import one_line

if TYPE_CHECKING:
    import torch

MAX_LISTED = 6


@dataclass(frozen=True)
class _Candidate:
    """A state dict of the file, and how it fits the model."""

    state: StateDict
    fit: Fit

    @property
    def is_exact(self) -> bool:
        return self.fit.is_exact

    @property
    def is_average(self) -> bool:
        return self.state.is_average or self.fit.has_counter


def load_checkpoint(module: torch.nn.Module, path: Path, *, digest: str | None = None) -> list[str]:
    """Put the file's weights into the module.

    1. The file is searched for state dicts. Where several fit the model, averaged weights are used, as in timm; two
       that fit, neither of which is the other's average, are an error.
    2. Keys are used as they are where they fit, and without wrappers' prefixes where only these fit.
    3. Every tensor of the model must come from the file, in its shape, and every tensor of the file must be used.
       Exceptions, each in the notes: `num_batches_tracked`, tied weights that safetensors leaves out, buffers that the
       model computes itself to the same values, and counters of averaged weights.

    Args:
        module: The model. It stays as it was where an error is raised.
        path: The checkpoint, see `checkpoint_files`.
        digest: The `checkpoint_digest` that the file must have; None for any.

    Returns:
        Notes on what was chosen, removed, converted or dropped.

    Raises:
        CheckpointError: If the file cannot be read, or no state dict in it fits, or several do.
    """
    with opened_checkpoint(path, digest=digest) as content:
        model = ModelKeys.of(module)
        chosen, notes = _choose(content, model, path)
        found = chosen.fit
        try:
            left = module.load_state_dict(found.tensors, strict=False)
        except Exception as error:
            raise CheckpointError(
                f"the checkpoint {path} does not fit the model",
                why=one_line(error),
                do="check the model against how the checkpoint was trained",
            ) from error
        if left.unexpected_keys:
            raise CheckpointError(
                f"the checkpoint {path} does not fit the model",
                why=f"the model's own loading hooks do not take {', '.join(left.unexpected_keys[:5])}",
                do="load it in a factory (file.py:factory) instead",
            )
    if found.removed:
        notes.append(f"checkpoint: {found.removed}")
    return notes + found.notes


def _choose(content: Any, model: ModelKeys, path: Path) -> tuple[_Candidate, list[str]]:
    """The state dict that is meant, and notes on the choice. Raises CheckpointError."""
    whole = [_Candidate(state, fit(state.tensors, model)) for state in state_dicts(content, path)]
    candidates = [part for each in whole for part in ([each] if each.is_exact else _parts(each, model) or [each])]
    exact = [each for each in candidates if each.is_exact]
    if not exact:
        raise _no_fit(candidates, path)
    averages = [each for each in exact if each.is_average]
    pool = averages or exact
    chosen = pool[0]
    others = [each for each in pool[1:] if not _same(each, chosen)]
    if others:
        raise _several([chosen, *others], path)
    near = [] if averages else [each for each in candidates if each.is_average and _is_near(each, model)]
    if near:
        raise CheckpointError(
            f"the averaged weights in {path} do not fit the model, though others in it do",
            why=f"{near[0].state.label}: {near[0].fit.problems}; {chosen.state.label} fits",
            do=f"save those that are meant alone: {_save_alone(path, chosen)}",
        )
    unnamed = {} if averages else unnamed_averages(content)
    for label, count in unnamed.items():
        if 2 * count > len(model.tensors):
            raise CheckpointError(
                f"the averaged weights in {path} have no names",
                why=f"{label!r} is a list of {count} tensors; {chosen.state.label} fits the model, but is not averaged",
                do=f"copy the average into the model and save its state_dict(), or: {_save_alone(path, chosen)}",
            )
    return chosen, _notes_on(chosen, candidates, path)


def _notes_on(chosen: _Candidate, candidates: list[_Candidate], path: Path) -> list[str]:
    if not chosen.state.path:
        return ["checkpoint: averaged weights (AveragedModel)"] if chosen.is_average else []
    what = "averaged weights" if chosen.is_average else "state dict"
    note = f"checkpoint: took the {what} under {chosen.state.label}"
    plain = [each for each in candidates if each.is_exact and each is not chosen and not _same(each, chosen)]
    if plain:
        labels = ", ".join(each.state.label for each in plain[:MAX_LISTED])
        note += f", not those under {labels} (to use them: {_save_alone(path, plain[0])})"
    return [note]


def _parts(candidate: _Candidate, model: ModelKeys) -> list[_Candidate]:
    """A flat mapping that holds the model more than once, such as `online_model.*` and `ema_model.*`, in parts.

    Empty where a part does not fit, so that nothing of the file is left out.
    """
    groups: dict[str, dict[str, Any]] = {}
    for key, value in candidate.state.tensors.items():
        first, dot, _ = key.partition(".")
        groups.setdefault(first if dot else "", {})[key] = value
    loose = groups.pop("", {})
    if len(groups) < 2 or len(groups) > MAX_LISTED:
        return []
    parts = []
    for name, tensors in groups.items():
        state = StateDict(
            (*candidate.state.path, f"{name}.*"),
            tensors,
            is_average=candidate.state.is_average or is_average(name),
        )
        found = fit({**tensors, **loose}, model)
        found.has_counter = False  # it counts for one of the parts, which its name tells
        parts.append(_Candidate(state, found))
    return parts if all(part.is_exact for part in parts) else []


def _same(one: _Candidate, other: _Candidate) -> bool:
    """Whether two candidates put the same values into the model."""
    import torch

    first, second = one.fit.tensors, other.fit.tensors
    return first.keys() == second.keys() and all(
        torch.equal(value, second[key]) if isinstance(value, torch.Tensor) else value is second[key]
        for key, value in first.items()
    )


def _is_near(candidate: _Candidate, model: ModelKeys) -> bool:
    """Whether most of the model's names are in it, in whatever shape."""
    names = candidate.fit.names.values()
    return 2 * sum(name in model.tensors for name in names) > len(model.tensors)


def _no_fit(candidates: list[_Candidate], path: Path) -> CheckpointError:
    best = max(candidates, key=lambda each: len(each.fit.tensors))
    others = [each.state.label for each in candidates if each is not best]
    where = f"{best.state.label}: " if best.state.path else ""
    listed = f"; nor do {', '.join(others[:MAX_LISTED])}" if others else ""
    shard = " It is one of several shards: name the .index.json beside it." if _is_shard(path) else ""
    return CheckpointError(
        f"the checkpoint {path} does not fit the model",
        why=f"{where}{best.fit.problems}{listed}",
        do=f"check the model's name and its --model-arg against how the checkpoint was trained.{shard}",
    )


def _is_shard(path: Path) -> bool:
    return "-of-0" in path.name


def _several(candidates: list[_Candidate], path: Path) -> CheckpointError:
    labels = ", ".join(each.state.label for each in candidates[:MAX_LISTED])
    return CheckpointError(
        f"{len(candidates)} state dicts in {path} fit the model",
        why=f"{labels} have different weights, and no name tells which are meant",
        do=f"save those that are meant alone, for example {_save_alone(path, candidates[0])}",
    )


def _save_alone(path: Path, candidate: _Candidate) -> str:
    """Python code that saves this state dict into a file of its own."""
    steps = [key for key in candidate.state.path if not key.endswith(".*")]
    inside = "".join(f"[{printable(key)!r}]" for key in steps)
    loaded = f"torch.load({path.name!r}, weights_only=True){inside}"
    part = candidate.state.path[-1][:-1] if len(steps) < len(candidate.state.path) else ""
    if part:
        loaded = f"{{k: v for k, v in {loaded}.items() if k.startswith({part!r})}}"
    return f"torch.save({loaded}, 'chosen.pth')"
