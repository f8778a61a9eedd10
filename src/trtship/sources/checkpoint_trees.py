"""State dicts inside what training scripts save around them: found by content, averaged weights told apart by name."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtship.errors import CheckpointError

MAX_DEPTH = 4
"""Mappings inside mappings: training scripts nest state dicts two or three deep."""
MAX_SHOWN = 5

# "ema", "state_dict_ema", "modelEMA", "ema_0.9999", "swa_state_dict", "averaged_model", but not "schema"
_AVERAGE = re.compile(r"(?<![a-z])(ema|swa|avg|average|averaged|polyak)(?![a-z])")
# what an optimizer or a scaler remembers has the weights' names and shapes, and is no weight
_NO_WEIGHTS = re.compile(r"(?<![a-z])(optim[a-z]*|exp_avg[a-z_]*|momentum_buffer|grads?|scaler|scheduler)(?![a-z])")


@dataclass(frozen=True)
class StateDict:
    """A mapping from text to tensors inside a checkpoint.

    Attributes:
        path: The keys that lead to it from the file's top; the last one ends in `.*` for a part of a flat mapping.
        tensors: Its tensors by key. An `_extra_state` may be any object.
        is_average: Whether its name says that these are averaged weights.
    """

    path: tuple[str, ...]
    tensors: Mapping[str, Any]
    is_average: bool

    @property
    def label(self) -> str:
        """`'ema.module'`, for messages."""
        return f"'{printable('.'.join(self.path))}'" if self.path else "the top of the file"


def state_dicts(tree: object, path: Path) -> list[StateDict]:
    """Return every state dict in what a checkpoint file holds, those nearest to the top first.

    Each object is looked at once, so a mapping that holds itself ends the search there.

    Args:
        tree: What the file holds.
        path: The file, for messages.

    Raises:
        CheckpointError: If there is none.
    """
    found: list[StateDict] = []
    seen: set[int] = set()
    strange: list[str] = []
    queue: deque[tuple[tuple[str, ...], object]] = deque([((), tree)])
    while queue:
        where, node = queue.popleft()
        if not isinstance(node, Mapping) or id(node) in seen or not node:
            continue
        seen.add(id(node))
        problem = _why_not(node)
        if problem is None:
            found.append(StateDict(where, node, is_average=any(is_average(key) for key in where)))
            continue
        strange.append(f"{'.'.join(where) or 'it'}: {problem}")
        if len(where) < MAX_DEPTH:
            queue.extend(
                ((*where, key), value)
                for key, value in node.items()
                if isinstance(key, str) and isinstance(value, Mapping) and not _NO_WEIGHTS.search(_words(key))
            )
    if not found:
        raise CheckpointError(
            f"there is no state dict in {path}",
            why=f"it holds {describe(tree)}" + (f" ({printable(strange[0])})" if strange else ""),
            do="save model.state_dict(), alone or under a name such as state_dict",
        )
    return found


def unnamed_averages(tree: object) -> dict[str, int]:
    """Return, by their label, lists of tensors under a name for averages, and how many tensors are in each.

    Such lists follow the order of `model.parameters()` (torch_ema writes them), and no key tells what is what.
    """
    import torch

    found: dict[str, int] = {}
    seen: set[int] = set()
    queue: deque[tuple[tuple[str, ...], object]] = deque([((), tree)])
    while queue:
        where, node = queue.popleft()
        if not isinstance(node, Mapping) or id(node) in seen or len(where) > MAX_DEPTH:
            continue
        seen.add(id(node))
        for key, value in node.items():
            path = (*where, key) if isinstance(key, str) else where
            queue.append((path, value))
            if isinstance(value, list | tuple) and any(is_average(part) for part in path):
                count = sum(isinstance(item, torch.Tensor) for item in value)
                if count:
                    found[printable(".".join(path))] = count
    return found


def is_average(name: str) -> bool:
    """Return whether a key says that averaged weights are under it."""
    return bool(_AVERAGE.search(_words(name)))


def describe(content: object) -> str:
    """Return what an object from a checkpoint is, in words, without a look deeper than its keys."""
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    if not content:
        return "an empty dict"
    keys = [key if isinstance(key, str) else f"a key of type {type(key).__name__}" for key, _ in _first(content)]
    return f"a dict with {printable(', '.join(keys))} ..."


def printable(text: str, most: int = 200) -> str:
    """Return text from a file as one short line of printable characters."""
    text = text if len(text) <= most else f"{text[:most]}..."
    return text if text.isprintable() else ascii(text)[1:-1]


def _why_not(node: Mapping[Any, Any]) -> str | None:
    """Why a mapping is no state dict, or None where it is one."""
    import torch

    for key, value in node.items():
        if not isinstance(key, str):
            return f"a key is no text but a {type(key).__name__}"
        if not isinstance(value, torch.Tensor) and not key.endswith("_extra_state"):
            return f"{key} is no tensor"
    return None


def _words(name: str) -> str:
    """`modelEMA` as `model_ema`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name[:200]).lower()


def _first(content: Mapping[Any, Any]) -> list[tuple[Any, Any]]:
    return [item for item, _ in zip(content.items(), range(MAX_SHOWN), strict=False)]
