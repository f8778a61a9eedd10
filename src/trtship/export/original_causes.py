"""What in a model's code makes it answer in two ways, or makes the rows of a batch depend on each other."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from trtship.export.original_runs import Feeds, Operation, Place, Trial, first_apart, random_operations
from trtship.export.values import value_lines
from trtship.sources import LoadedModel

SHOWN = 3
TRIED = 16


class Cause(NamedTuple):
    """The likely cause, and its remedy."""

    why: str
    do: str


def cause_of_two_answers(model: LoadedModel, feeds: Feeds) -> Cause:
    """Dropout, other random numbers, or what a run changes in the module; in this order."""
    active = active_dropouts(model.module)
    if active:
        return Cause(
            f"in eval mode {_listed(active)} still drops at random: its training flag is set",
            "do not override train() or set .training for it, and do not call .train() in forward",
        )
    found = None
    with contextlib.suppress(Exception):  # what cannot be watched is reported without its cause
        found = _random_numbers(model, feeds) or _state_kept(model, feeds)
    if found is not None:
        return found
    return Cause(
        "no random numbers and no change of the module were seen",
        "look for global variables, files or a clock that its forward reads",
    )


def _random_numbers(model: LoadedModel, feeds: Feeds) -> Cause | None:
    drawn = random_operations(Trial(model), feeds) if _random_numbers_matter(model, feeds) else []
    dropout = [op for op in drawn if "dropout" in op.name]
    if dropout:
        return Cause(
            f"{_operations(dropout)} drops at random in eval mode too",
            "pass training=self.training to F.dropout (its default is True), or use nn.Dropout",
        )
    if drawn:
        return Cause(
            f"{_operations(drawn)} draws random numbers",
            "make the random numbers an input of the model, or a buffer that is drawn once",
        )
    return None


def _state_kept(model: LoadedModel, feeds: Feeds) -> Cause | None:
    changed = changed_by_run(model, feeds)
    if not changed:
        return None
    return Cause(
        f"a run changes {_listed(changed)} of the module, and the next run reads it",
        "let its forward keep nothing for the next call: pass such state in and return it",
    )


def cause_of_rows(model: LoadedModel, places: Sequence[tuple[Place, Place]]) -> Cause:
    """Return the likely cause: a normalization that uses the batch's statistics, or the first operation whose result
    differs for the same row at two places, and the line that takes values of the whole batch into Python."""
    norms = norms_over_batch(model.module)
    if norms:
        return Cause(
            f"{_listed(norms)} normalizes with the statistics of the batch, in eval mode too",
            "use running statistics (track_running_stats=True, and eval mode), or a norm within each row",
        )
    found = None
    for one, other in places:
        with contextlib.suppress(Exception):  # only the operation's name is lost
            found = found or first_apart(Trial(model, wide=True), one, other)
    place = f"the first such result is that of {_operations([found])}" if found else "its place was not found"
    taken = _values_taken(model, places[0][1].feeds)
    if taken is not None:
        return Cause(f"{place}, and {taken.why}", taken.do)
    return Cause(
        f"{place}; look for a mean, norm, softmax or sort over axis 0, or a reshape that mixes rows",
        "let each row be computed from its own inputs alone",
    )


def cause_of_batch_sizes(model: LoadedModel, feeds: Feeds) -> Cause:
    """Return the likely cause of rows that depend on how many others there are, and on nothing else of them."""
    return _values_taken(model, feeds) or Cause(
        "only the number of rows matters, not what is in the others", "use no len(x) or x.shape[0] as a factor"
    )


def _values_taken(model: LoadedModel, feeds: Feeds) -> Cause | None:
    import torch

    lines = value_lines(model.module, [torch.from_numpy(feeds[spec.name].copy()) for spec in model.inputs])
    if not lines:
        return None
    return Cause(
        f"values of the batch become Python numbers at {lines[0]}",
        "let each row decide for itself: use torch.where on values of that row, or decide outside the model",
    )


def _random_numbers_matter(model: LoadedModel, feeds: Feeds) -> bool:
    """Whether fresh copies answer differently for other random numbers."""
    first, *others = (Trial(model).run(feeds, seed=seed) for seed in range(TRIED))
    return any(not np.array_equal(a, b, equal_nan=True) for o in others for a, b in zip(first, o, strict=True))


def active_dropouts(module: Any) -> list[str]:
    """Names of the dropout modules that drop in the mode in which the module runs."""
    import torch

    kind = torch.nn.modules.dropout._DropoutNd
    return [name for name, part in module.named_modules() if isinstance(part, kind) and part.training and part.p > 0]


def norms_over_batch(module: Any) -> list[str]:
    """Names of the batch norms that use the batch's own statistics."""
    import torch

    kind = torch.nn.modules.batchnorm._BatchNorm
    return [
        name
        for name, part in module.named_modules()
        if isinstance(part, kind) and (part.training or part.running_mean is None)
    ]


def changed_by_run(model: LoadedModel, feeds: Feeds) -> list[str]:
    """Names of the parameters, buffers and plain attributes that a run changes."""
    trial = Trial(model)
    before = dict(_state(trial.module))
    trial.run(feeds, seed=0)
    return [name for name, value in _state(trial.module) if before.get(name) != value]


def _state(module: Any) -> Iterator[tuple[str, object]]:
    import torch

    for name, part in module.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            own = [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]
        else:
            own = [*part._parameters.items(), *part._buffers.items()]
            own += [item for item in vars(part).items() if not item[0].startswith(("_parameters", "_buffers"))]
        for key, value in own:
            yield (f"{name}.{key}" if name else key), _token(torch, value)


def _token(torch: Any, value: Any) -> object:
    if isinstance(value, torch.Tensor):
        return hashlib.sha256(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data).digest()
    if isinstance(value, int | float | complex | str | bytes | None):
        return value
    if isinstance(value, dict):
        return [(str(key), _token(torch, item)) for key, item in value.items()]
    if isinstance(value, list | tuple):
        return [_token(torch, item) for item in value]
    return type(value)


def _operations(operations: Sequence[Operation]) -> str:
    texts = [f"{op.name} in {op.line}" if op.line else op.name for op in operations]
    return _listed(list(dict.fromkeys(texts)))


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:SHOWN])
    return shown + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
