"""Signs that torch has put off, in arrays of other packages that lend a torch tensor's memory by DLPack.

Torch marks the negative of a tensor by a bit (`torch._neg_view`, `imag` of a conjugate) and exports the memory without
it: whoever takes that reads the wrong sign.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any


def resolved_signs() -> AbstractContextManager[object]:
    """A block in which torch tensors lend memory that has their signs: a copy, where a tensor's own has not."""
    overrides = getattr(sys.modules.get("torch"), "overrides", None)
    if getattr(overrides, "TorchFunctionMode", None) is None:  # nobody has a tensor, or torch is being imported
        return nullcontext()
    made: AbstractContextManager[object] = _mode()()
    return made


@cache
def _mode() -> type[Any]:
    torch: Any = sys.modules["torch"]

    class Resolved(torch.overrides.TorchFunctionMode):  # type: ignore[misc]
        def __torch_function__(
            self,
            function: Callable[..., Any],
            types: Sequence[type],
            args: Sequence[Any] = (),
            kwargs: Mapping[str, Any] | None = None,
        ) -> Any:
            if function is torch.Tensor.__dlpack__ and args[0].is_neg():
                args = (args[0].resolve_neg(), *args[1:])
            return function(*args, **(kwargs or {}))

    return Resolved
