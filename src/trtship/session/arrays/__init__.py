"""The kinds of arrays that a session takes, each in a file of its own: one is added by its file and an entry here.

No package is imported but numpy unless the caller's own array is of that package.
"""

from __future__ import annotations

import importlib

from trtship.session.arrays.base import Array, Facts, Kind, speaks
from trtship.session.arrays.numpy import NUMPY

__all__ = ["FILES", "NUMPY", "Array", "Facts", "Kind", "kind_of"]

FILES = {"numpy": "numpy", "torch": "torch", "cupy": "cupy", "jax": "jax", "jaxlib": "jax"}
"""The package that an array's class is from (or one of its bases), and the file here that knows the kind."""
_known: dict[type, Kind] = {}


def kind_of(array: Array) -> Kind | None:
    """What kind of array it is; None for what is none."""
    return _known.get(type(array)) or _found(array)


def _found(array: Array) -> Kind | None:
    packages = [base.__module__.partition(".")[0] for base in type(array).__mro__]
    for file in dict.fromkeys(FILES[package] for package in packages if package in FILES):
        kind: Kind = importlib.import_module(f"{__name__}.{file}").kind()
        if kind.claims(array):
            _known[type(array)] = kind
            return kind
    if speaks(array, "__dlpack__", "__cuda_array_interface__"):
        from trtship.session.arrays.other import KIND

        return KIND if KIND.claims(array) else None
    return None
