"""SHA-256 of a loaded module: of its weights, and of all else that its modules hold.

The second part is there because a factory may read a file or take an argument that ends up in a plain attribute.
"""

from __future__ import annotations

import functools
import hashlib
import re
import types
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

REGISTERED = ("_parameters", "_buffers", "_modules")
DEEPEST = 20


class _AsIs(tuple[bytes, ...]):
    """Bytes that are a part's own text, not a container to look into."""


def hash_weights(module: torch.nn.Module) -> str:
    """Over name, dtype, shape and bytes of every parameter and buffer, non-persistent ones too, by name."""
    tensors: dict[str, torch.Tensor] = dict(module.named_buffers(remove_duplicate=False))
    tensors.update(module.named_parameters(remove_duplicate=False))
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name}\0".encode())
        for token in _tensor(tensors[name]):
            digest.update(token)
    return digest.hexdigest()


def hash_structure(module: torch.nn.Module) -> str:
    """Over every submodule's name, class and plain attributes: numbers, texts, arrays, containers and objects of them.

    Code counts by its name only: hash its files or note its package's version beside this.
    """
    digest = hashlib.sha256()
    for name, part in module.named_modules():
        attributes = {key: value for key, value in vars(part).items() if key not in REGISTERED}
        for token in _tokens((name, type(part), attributes), ()):
            digest.update(token)
            digest.update(b"\0")
    return digest.hexdigest()


def _tokens(value: object, above: tuple[int, ...]) -> Iterator[bytes | memoryview]:
    """`value` as bytes that are the same in every process, so without addresses. `above` (ids) breaks cycles."""
    import torch

    if isinstance(value, torch.nn.Module):
        yield _name(type(value))  # its attributes are hashed where it is a submodule
    elif isinstance(value, torch.Tensor):
        yield from _tensor(value)
    elif isinstance(value, np.ndarray) and not value.dtype.hasobject:
        yield f"{value.dtype} {value.shape}".encode()
        yield value.tobytes()
    elif id(value) in above or len(above) > DEEPEST:
        yield b"above"
    else:
        yield _name(type(value))
        for part in _parts(value):
            yield from part if isinstance(part, _AsIs) else _tokens(part, (*above, id(value)))


def _parts(value: object) -> Iterator[object]:
    """What an object is made of: other objects, and bytes to take as they are."""
    if isinstance(value, Mapping):
        for item in value.items():
            yield from item
    elif isinstance(value, list | tuple):
        yield from value
    elif isinstance(value, set | frozenset):
        yield _AsIs(sorted(bytes(token) for item in value for token in _tokens(item, ())))
    elif isinstance(value, functools.partial):
        yield from (value.func, value.args, value.keywords)
    elif isinstance(value, types.MethodType):
        yield _AsIs([_name(value)])
    elif isinstance(value, types.FunctionType):
        yield _AsIs([_name(value)])
        yield from (value.__defaults__, value.__kwdefaults__)
        yield from (cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell))
    elif isinstance(value, type):
        yield _AsIs([_name(value)])
    else:
        yield _AsIs([re.sub(r"0x[0-9a-fA-F]+", "", repr(value)).encode()])
        yield from vars(value).items() if hasattr(value, "__dict__") else ()


def _tensor(tensor: torch.Tensor) -> Iterator[bytes | memoryview]:
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    yield f"{tensor.dtype} {tuple(tensor.shape)}".encode()
    yield flat.view(torch.uint8).numpy().data if flat.numel() else b""


def _name(code: object) -> bytes:
    return f"{getattr(code, '__module__', '')}.{getattr(code, '__qualname__', '')}".encode()


def _is_filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
