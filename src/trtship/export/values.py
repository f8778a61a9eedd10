"""Watch a module while it runs, and report where its Python code takes a value of an input's out of a tensor.

A trace sees operators only: a number that Python takes out of a tensor, and all that it decides by it, is the same in
every later run of the graph.

1. The inputs depend on themselves. What an operator makes of a tensor that depends on an input does so too; what it
   makes of a shape does not, unless the shape follows from values, as after `x[x > 0]`.
2. `bool`, `int`, `float`, `item`, `tolist`, `numpy` and the like on a tensor that depends on an input is reported, with
   the line of the model's code.
3. Nothing is reported of a line whose outcome can only end the run: an `assert`, or an `if` that only raises.
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

from trtship.export.lines import Line, running_line
from trtship.session.module_copy import copy_module, set_to_infer
from trtship.session.torch_state import unchanged_state

TAKES_VALUES = frozenset(
    [
        *("__bool__", "__int__", "__float__", "__complex__", "__index__", "__contains__", "__nonzero__", "__long__"),
        *("__array__", "__dlpack__", "numpy", "tolist", "item", "equal", "allclose", "is_nonzero"),
    ]
)
"""Functions of PyTorch that make of a tensor something that is none."""
SIZED_BY_VALUES = frozenset(
    [
        *("nonzero", "nonzero_static", "argwhere", "masked_select", "bincount", "nms", "repeat_interleave"),
        *("unique", "_unique2", "unique_consecutive", "unique_dim", "combinations"),
    ]
)
"""Functions whose result's shape follows from values."""
SIZES = frozenset(("size", "numel", "__len__", "nelement", "sym_size"))


class Seen:
    """What `watched` saw: `values`, the lines that took a value of an input's, and `sizes`, those that took a size."""

    def __init__(self) -> None:
        self.values: list[Line] = []
        self.sizes: list[Line] = []


def watched(module: Any, seen: Seen) -> Any:
    """Return a module that runs `module` and writes into `seen`."""
    return _classes()[0](module, seen)


def value_lines(module: Any, example: Sequence[Any]) -> tuple[Line, ...]:
    """Run a copy of `module` once, and return the lines at which its Python code takes a value of an input's.

    Args:
        module: The module, which stays as it is.
        example: A tensor for each input.

    Returns:
        The lines, in the order in which they ran; none where the run fails before one.
    """
    import torch

    seen = Seen()
    with contextlib.suppress(Exception), unchanged_state(torch), torch.no_grad():
        watched(set_to_infer(copy_module(module)), seen)(*(tensor.clone() for tensor in example))
    return tuple(seen.values)


@functools.cache
def _classes() -> tuple[Any, Any]:
    """Made on first use: their bases are PyTorch's, which is imported only where it is needed."""
    import torch
    from torch.overrides import TorchFunctionMode

    def tensors(value: Any) -> Iterable[Any]:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, tuple | list):
            for item in value:
                yield from tensors(item)
        elif isinstance(value, dict):
            yield from tensors(list(value.values()))

    class Watch(TorchFunctionMode):
        def __init__(self, inputs: Any, seen: Seen) -> None:
            super().__init__()
            self.seen = seen
            self.dependent: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()
            """Storages with an input's values; True where their shape follows from values as well."""
            for tensor in tensors(inputs):
                self.mark(tensor, False)

        def mark(self, tensor: Any, shaped: bool) -> None:
            storage = self.storage(tensor)
            if storage is not None:
                self.dependent[storage] = shaped or self.dependent.get(storage, False)

        def storage(self, tensor: Any) -> Any:
            try:
                return tensor.untyped_storage()
            except (RuntimeError, NotImplementedError):  # a sparse tensor has none
                return None

        def state(self, value: Any) -> bool | None:
            """None where no tensor of it depends on an input; True where a shape follows from values."""
            found = [self.dependent.get(self.storage(t)) for t in tensors(value)]
            known = [state for state in found if state is not None]
            return any(known) if known else None

        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            name = getattr(function, "__name__", "")
            state = self.state((args, kwargs))
            if name in TAKES_VALUES and any(True for _ in tensors((args, kwargs))):
                self.take(self.seen.sizes if state is None else self.seen.values)
            result = function(*args, **kwargs)
            if state is None:
                return result
            is_size = name in SIZES or (name == "__get__" and not isinstance(result, torch.Tensor))
            if is_size:
                if state:
                    self.mark_all(result, False)
                return result
            if name in ("unbind", "__iter__") and state:
                self.take(self.seen.values)
            shaped = state or name in SIZED_BY_VALUES or (name == "__getitem__" and self.by_mask(args[1]))
            for tensor in tensors(result):
                self.mark(tensor, shaped and tensor.dim() > 0)
            if name.endswith("_") or name in ("__setitem__", "__set__"):  # written in place
                self.mark_all(args[:1], False)
            self.mark_all(kwargs.get("out"), False)
            return result

        def mark_all(self, value: Any, shaped: bool) -> None:
            for tensor in tensors(value):
                self.mark(tensor, shaped)

        def by_mask(self, index: Any) -> bool:
            return any(t.dtype in (torch.bool, torch.uint8) and self.state(t) is not None for t in tensors(index))

        def take(self, lines: list[Line]) -> None:
            line = running_line()
            if line is not None and line not in lines and not line.only_checks:
                lines.append(line)

    class Watched(torch.nn.Module):
        def __init__(self, module: Any, seen: Seen) -> None:
            super().__init__()
            self.module, self.seen = module, seen

        def forward(self, *args: Any) -> Any:
            with Watch(args, self.seen):
                return self.module(*args)

    return Watched, Watch
