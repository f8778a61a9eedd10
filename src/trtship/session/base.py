"""What runs tensors: one protocol over torch, onnxruntime and TensorRT.

A backend sets `runtime`, `inputs`, `outputs` (and `ranges`, where it accepts only some sizes) and overrides `_run`;
everything that a caller can get wrong is checked here, once.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self, TypeAlias

from trtship.errors import InputError
from trtship.spec import ShapeRange, TensorSpec

Array: TypeAlias = Any
"""A numpy array or a torch tensor. (Neither package is imported to say so.)"""


def is_torch(array: Array) -> bool:
    """Whether it is a torch tensor; where torch was never imported, nothing is."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def dtype_name(array: Array) -> str:
    """`"float32"`, `"bfloat16"` ... of a numpy array or a torch tensor."""
    return str(array.dtype).removeprefix("torch.")


class Session(ABC):
    """Runs named tensors through a model; a context manager.

    numpy arrays in, numpy arrays out; torch tensors in, torch tensors out on the same device, never by way of the
    host. Nothing is converted: a wrong dtype or shape is refused.
    """

    runtime: str
    """What runs, for people: `"onnxruntime 1.32.0, CPU"`."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    ranges: Mapping[str, ShapeRange] = {}
    """The sizes that each letter of the inputs' shapes may take; a letter that is absent may take any."""
    can_poison: bool = False
    """Whether its outputs go to memory that outlives a run, and that `poison` can fill."""
    poison: bool = False
    """Set it to fill that memory with bytes of 0xFF before each run: NaN in every floating type, -1 in integers. What
    a run leaves unwritten is then seen."""

    _closed = False

    def infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name. Raises InputError, with the specs in it, when `feeds` are not what `inputs` say."""
        if self._closed:
            raise InputError("this session is closed", why="infer() was called after close()", do="open another one")
        self._check_names(feeds)
        self._check_kinds(feeds)
        self._check_sizes(feeds)
        return self._run(feeds)

    @abstractmethod
    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run checked feeds: all numpy, or all torch on one device; perhaps not contiguous, perhaps with grad."""

    def close(self) -> None:
        """Free what the session holds. May be called twice; `infer` raises InputError from then on."""
        if not self._closed:
            self._closed = True
            self._release()

    def _release(self) -> None:  # noqa: B027 - most backends hold nothing beyond their attributes
        """Free a backend's own resources; called once."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _refusal(self, what: str, why: str) -> InputError:
        specs = "; ".join(str(spec) for spec in self.inputs)
        return InputError(what, why=why, do=f"the inputs are {specs}")

    def _check_names(self, feeds: Mapping[str, Array]) -> None:
        wanted = {spec.name for spec in self.inputs}
        faults = [f"missing: {', '.join(sorted(wanted - feeds.keys()))}"] if wanted - feeds.keys() else []
        faults += [f"unknown: {', '.join(sorted(feeds.keys() - wanted))}"] if feeds.keys() - wanted else []
        if faults:
            raise self._refusal("these are not the session's inputs", "; ".join(faults))

    def _check_kinds(self, feeds: Mapping[str, Array]) -> None:
        import numpy as np

        kinds: dict[str, str] = {}
        for name, array in feeds.items():
            if is_torch(array):
                kinds[name] = f"a torch tensor on {array.device}"
            elif isinstance(array, np.ndarray):
                kinds[name] = "a numpy array"
            else:
                raise self._refusal(f"{name} is a {type(array).__name__}", "it takes numpy arrays or torch tensors")
        if len(set(kinds.values())) > 1:
            why = ", ".join(f"{name} is {kind}" for name, kind in kinds.items())
            raise self._refusal("the inputs are of different kinds, or on different devices", why)
        for spec in self.inputs:
            if dtype_name(feeds[spec.name]) != spec.dtype:
                why = f"it takes {spec.dtype}, and converts nothing by itself"
                raise self._refusal(f"{spec.name} is {dtype_name(feeds[spec.name])}", why)

    def _check_sizes(self, feeds: Mapping[str, Array]) -> None:
        sizes: dict[str, tuple[int, str]] = {}
        for spec in self.inputs:
            shape = tuple(feeds[spec.name].shape)
            what = f"{spec.name} has the shape {list(shape)}"
            if len(shape) != len(spec.shape):
                raise self._refusal(what, f"it takes {len(spec.shape)} dimensions")
            for axis, (size, wanted) in enumerate(zip(shape, spec.shape, strict=True)):
                if isinstance(wanted, int):
                    if size != wanted:
                        raise self._refusal(what, f"dimension {axis} is {size} where it takes {wanted}")
                    continue
                first, where = sizes.setdefault(wanted, (size, spec.name))
                if first != size:
                    raise self._refusal(what, f"{wanted} is {size} here and {first} in {where}")
                if wanted in self.ranges and size not in self.ranges[wanted]:
                    raise self._refusal(what, f"{wanted} is {size}, outside {self.ranges[wanted]}")
