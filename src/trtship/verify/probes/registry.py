"""The probes, found in this package."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from functools import cache
from pathlib import Path
from typing import Any

from trtship.verify.probes.base import Probe


@cache
def all_probes() -> tuple[Probe, ...]:
    """One of each, by name."""
    package = __name__.rpartition(".")[0]
    found: list[type[Probe]] = []
    for place in pkgutil.iter_modules([str(Path(__file__).parent)]):
        module = importlib.import_module(f"{package}.{place.name}")
        found += [kind for kind in vars(module).values() if _is_own(kind, module.__name__)]
    return tuple(kind() for kind in sorted(found, key=lambda kind: kind.name))


def _is_own(kind: Any, module: str) -> bool:
    is_probe = isinstance(kind, type) and issubclass(kind, Probe) and not inspect.isabstract(kind)
    return is_probe and kind.__module__ == module
