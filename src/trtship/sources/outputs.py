"""Whatever a module returns, as named tensors; and the module that returns them as a flat tuple."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def named_tensors(result: object) -> dict[str, torch.Tensor]:
    """A module's result by name, in its own order; a name is "" for a bare tensor.

    Keys of mappings (transformers' ModelOutput is one) and fields of named tuples and dataclasses give names, places
    in tuples and lists give `output_0`, `output_1` ...; nested ones are joined by `_`. What is no tensor is left out
    (`left_out` names it). Where two tensors would get one name, the second's ends in `_2`.
    """
    found: dict[str, torch.Tensor] = {}
    for name, tensor in _walk("", result):
        number = 2
        unique = name
        while unique in found:
            unique, number = f"{name}_{number}", number + 1
        found[unique] = tensor
    return found


def left_out(result: object, name: str = "output") -> list[str]:
    """Return what `named_tensors` leaves out of a module's result, as `name (type)`; None is nothing to tell."""
    import torch

    if result is None or isinstance(result, torch.Tensor | Mapping | tuple | list) or is_dataclass(result):
        return [text for key, item in _children(result, name) for text in left_out(item, key)]
    return [f"{name} ({type(result).__name__})"]


def _walk(name: str, value: object) -> Iterator[tuple[str, torch.Tensor]]:
    import torch

    if isinstance(value, torch.Tensor):
        yield name, value
        return
    for key, item in _children(value, name or "output"):
        yield from _walk(key, item)


def _children(value: object, name: str) -> Iterator[tuple[str, object]]:
    prefix = "" if name == "output" else f"{name}_"
    if isinstance(value, Mapping):
        yield from ((f"{prefix}{key}", item) for key, item in value.items())
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        yield from ((f"{prefix}{key}", getattr(value, key)) for key in value._fields)
    elif isinstance(value, tuple | list):
        yield from ((f"{name}_{index}", item) for index, item in enumerate(value))
    elif is_dataclass(value) and not isinstance(value, type):
        yield from ((f"{prefix}{f.name}", getattr(value, f.name)) for f in fields(value))


def is_flat(result: object) -> bool:
    """Whether exporters can take it as it is: a tensor, or a plain tuple of tensors."""
    import torch

    return isinstance(result, torch.Tensor) or (
        type(result) is tuple and all(isinstance(item, torch.Tensor) for item in result)
    )


def tensors_in_tensors_out(
    module: torch.nn.Module, keywords: tuple[str, ...] | None, *, single: bool = False
) -> torch.nn.Module:
    """Return `module` behind a forward that takes tensors by position and returns one, or a tuple of them.

    Args:
        module: the model, in the mode in which it is to run.
        keywords: the names under which `module` takes the tensors; None for by position.
        single: convert float16 and bfloat16 inputs to float32 first.
    """
    wrapped: torch.nn.Module = _wrapper()(module, keywords, single)
    wrapped.training = False  # not eval(), which programs of torch.export refuse
    return wrapped


@functools.cache
def _wrapper() -> Any:
    """The class, made on first use: its base is torch's, which is not imported before."""
    import torch

    class TensorsInTensorsOut(torch.nn.Module):
        def __init__(self, module: torch.nn.Module, keywords: tuple[str, ...] | None, single: bool) -> None:
            super().__init__()
            self.module = module
            self.keywords = keywords
            self.single = single

        def forward(self, *tensors: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
            if self.single:
                tensors = tuple(t.float() if t.dtype in (torch.float16, torch.bfloat16) else t for t in tensors)
            if self.keywords is None:
                result = self.module(*tensors)
            else:
                result = self.module(**dict(zip(self.keywords, tensors, strict=True)))
            flat = tuple(named_tensors(result).values())
            return flat[0] if len(flat) == 1 else flat

    return TensorsInTensorsOut
