"""The passes that make a graph faster, found in this package: one is added by adding its file."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Iterable
from typing import Any

import trtship.passes
from trtship.errors import SpecError
from trtship.passes.rewrite import Rewrite

ALL, NONE = "all", "none"


def all_passes() -> tuple[Rewrite[Any], ...]:
    """Those that run unasked, in the order in which they run."""
    return tuple(kind() for kind in _kinds().values() if kind.order is not None)


def find_passes(names: Iterable[str]) -> tuple[Rewrite[Any], ...]:
    """The passes of these names (see `name_of`), in the order in which they run. Raises SpecError."""
    kinds, wanted = _kinds(), set(names)
    for name in sorted(wanted - kinds.keys()):
        near = difflib.get_close_matches(name, kinds, n=3, cutoff=0.4) or list(kinds)
        raise SpecError(
            f"--passes: there is no pass {name!r}",
            why=f"the nearest names are {', '.join(near)}",
            do=f"{ALL}, {NONE}, or a list such as {','.join(name_of(one) for one in all_passes())}",
        )
    return tuple(kind() for name, kind in kinds.items() if name in wanted)


def parse_passes(text: str) -> tuple[str, ...]:
    """`"all"`, `"none"` or names with commas between them, as the names of the passes in the order in which they run.

    Raises SpecError for an unknown one.
    """
    if text == NONE:
        return ()
    passes = all_passes() if text == ALL else find_passes(name.strip() for name in text.split(","))
    return tuple(map(name_of, passes))


def name_of(one: Rewrite[Any] | type[Rewrite[Any]]) -> str:
    """As `--passes` takes it: `windows-into-heads`."""
    return one.name.replace(" ", "-")


def _kinds() -> dict[str, type[Rewrite[Any]]]:
    """By name, ascending by `order`, then those without one."""
    found: list[type[Rewrite[Any]]] = []
    for place in pkgutil.iter_modules(trtship.passes.__path__):
        module = importlib.import_module(f"{trtship.passes.__name__}.{place.name}")
        found += [kind for kind in vars(module).values() if _is_own(kind, module.__name__)]
    found.sort(key=lambda kind: (kind.order is None, kind.order, kind.name))
    return {name_of(kind): kind for kind in found}


def _is_own(kind: Any, module: str) -> bool:
    is_pass = isinstance(kind, type) and issubclass(kind, Rewrite) and not inspect.isabstract(kind)
    return is_pass and kind.__module__ == module
