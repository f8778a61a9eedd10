"""Runs of private copies of the original: plain, in float64, with weights moved by a rounding, or watched.

The float64 run tells rounding from real differences: what is rounding becomes smaller by 2^29 in it.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import numpy as np

from trtship.needs import need
from trtship.session.module_copy import copy_module, set_to_infer, wide_dtypes, widen
from trtship.session.torch import run_module
from trtship.session.torch_state import unchanged_state
from trtship.sources import LoadedModel

Feeds = Mapping[str, np.ndarray]


class Operation(NamedTuple):
    """One call into torch: its name, the line of the model's code that it is from (`net.py:12`, or empty), and the
    result for a row as its shape, norm and sum (None without rows)."""

    name: str
    line: str
    row: tuple[tuple[int, ...], float, float] | None = None


class Trial:
    """A private copy of the original that keeps what its code stores between runs.

    `drew` is whether its last run drew random numbers, torch's (on the CPU), numpy's or Python's.

    Args:
        model: the original.
        wide: compute in float64, also where the model's code says float32.
        moved: change every weight and every input by one unit in the last place, up or down.
    """

    def __init__(self, model: LoadedModel, *, wide: bool = False, moved: bool = False) -> None:
        self.torch = torch = need("torch", purpose="running a PyTorch model")
        self._inputs, self._wide, self._moved = model.inputs, wide, moved
        self.drew = False
        self.module = set_to_infer(copy_module(model.module))
        if wide:
            widen(self.module)
        if moved:
            self._generator = torch.Generator().manual_seed(0)
            with torch.no_grad():
                self.module._apply(self._move)

    def run(self, feeds: Feeds, *, seed: int, modes: Sequence[Any] = ()) -> list[np.ndarray]:
        """The outputs, with every generator of random numbers seeded by `seed`; `modes` are torch's, to watch it."""
        torch = self.torch
        tensors = [torch.from_numpy(feeds[spec.name].copy()) for spec in self._inputs]
        with unchanged_state(torch), ExitStack() as around:
            torch.manual_seed(seed)
            np.random.seed(seed)
            random.seed(seed)
            if self._wide:
                dtypes = wide_dtypes()
                tensors = [t.to(dtypes.get(t.dtype, t.dtype)) for t in tensors]
                torch.set_default_dtype(torch.float64)
                around.enter_context(_everything_wide(torch)())
            if self._moved:
                tensors = [self._move(t) for t in tensors]
            for mode in modes:
                around.enter_context(mode)
            before = _generators(torch)
            outputs = run_module(self.module, tensors)
            self.drew = _generators(torch) != before
        plain = [torch.view_as_real(o.resolve_conj()) if o.is_complex() else o for o in outputs]
        return [o.double().numpy() if o.is_floating_point() else o.numpy() for o in plain]

    def _move(self, tensor: Any) -> Any:
        if not tensor.is_floating_point():
            return tensor
        up = self.torch.rand(tensor.shape, generator=self._generator) < 0.5
        eps = self.torch.finfo(tensor.dtype).eps
        return self.torch.where(up, tensor * (1 + eps), tensor * (1 - eps))


def random_operations(trial: Trial, feeds: Feeds) -> list[Operation]:
    """Those that draw random numbers in one run, each once. Dropout is named as such."""
    torch = trial.torch
    found: list[Operation] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):  # type: ignore[misc, name-defined]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if torch.Tag.nondeterministic_seeded in func.tags:
                line, functions = _place(sys._getframe(1))
                dropout = next((name for name in functions if "dropout" in name), None)
                found.append(Operation(dropout or func.overloadpacket.__name__, line))
            return func(*args, **(kwargs or {}))

    trial.run(feeds, seed=0, modes=[Watch(), _NumbersOfOthers(found)])
    return list(dict.fromkeys(found))


class _NumbersOfOthers:
    """Notes whether numpy's or Python's random numbers were drawn inside."""

    def __init__(self, found: list[Operation]) -> None:
        self._found = found

    def __enter__(self) -> None:
        self._before = _others()

    def __exit__(self, *_: object) -> None:
        names = ("numpy.random", "random")
        changed = [a != b for a, b in zip(_others(), self._before, strict=True)]
        self._found += [Operation(name, "") for name, was in zip(names, changed, strict=True) if was]


def _generators(torch: Any) -> tuple[object, ...]:
    return torch.get_rng_state().numpy().tobytes(), *_others()


def _others() -> tuple[object, object]:
    """The states of numpy's and of Python's random numbers."""
    state: Any = np.random.get_state()
    return (state[1].tobytes(), *state[2:]), random.getstate()


@dataclass(frozen=True)
class Place:
    """A row of a batch of `size`."""

    feeds: Feeds
    size: int
    row: int


def first_apart(trial: Trial, one: Place, other: Place) -> Operation | None:
    """The first operation whose result for a row is another one at another place, in another batch; None where the two
    runs cannot be compared. `trial` computes in float64."""
    for a, b in zip(_operations(trial, one), _operations(trial, other), strict=False):
        if (a.name, a.line) != (b.name, b.line):
            return None
        if a.row is None or b.row is None or a.row[0] != b.row[0]:
            continue
        scale = max(abs(a.row[1]), abs(b.row[1]))
        if scale and max(abs(a.row[1] - b.row[1]), abs(a.row[2] - b.row[2])) > ROW_CHANGED * scale:
            return b
    return None


ROW_CHANGED = 2.0**-26
"""Relative to a row's norm: float32's rounding, which no float64 run comes near to."""


def _operations(trial: Trial, place: Place) -> list[Operation]:
    torch = trial.torch
    found: list[Operation] = []

    class Watch(torch.overrides.TorchFunctionMode):  # type: ignore[misc, name-defined]
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            tensor = result[0] if isinstance(result, tuple | list) and result else result
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                name = getattr(func, "__name__", "").strip("_")
                found.append(Operation(name, _place(sys._getframe(1))[0], _row(tensor, place)))
            return result

    trial.run(place.feeds, seed=0, modes=[Watch()])
    return found


def _row(result: Any, place: Place) -> tuple[tuple[int, ...], float, float] | None:
    """Shape, norm and sum of the row's part, where the first axis is the batch, or the batch times others."""
    if not result.ndim or not result.shape[0] or result.shape[0] % place.size:
        return None
    rows = result.shape[0] // place.size
    part = result[place.row * rows : (place.row + 1) * rows].detach().double()
    return tuple(part.shape), float(part.norm()), float(part.sum())


def _everything_wide(torch: Any) -> Any:
    """A mode in which what asks for float32 gets float64."""
    single, double = torch.float32, torch.float64
    reads_bits = torch.ops.aten.view.dtype

    def wide(value: Any) -> Any:
        return double if value is single else value

    class Wide(torch.utils._python_dispatch.TorchDispatchMode):  # type: ignore[misc]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if func is not reads_bits:
                args = tuple(wide(value) for value in args)
                kwargs = {name: wide(value) for name, value in kwargs.items()}
            return func(*args, **kwargs)

    return Wide


def _place(frame: FrameType | None) -> tuple[str, list[str]]:
    """The innermost line of the model's own code, and the functions of torch below it."""
    functions: list[str] = []
    skipped = _skipped_folders()
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith(skipped):
            return f"{Path(file).name}:{frame.f_lineno}", functions
        if file.startswith(skipped[-1]) and frame.f_code.co_name == "run":
            return "", functions
        functions.append(frame.f_code.co_name)
        frame = frame.f_back
    return "", functions


def _skipped_folders() -> tuple[str, ...]:
    import torch

    import trtship

    return (f"{Path(torch.__file__).parent}/", "<", f"{Path(trtship.__file__).parent}/")
