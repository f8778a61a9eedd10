"""The peers, one file each; `find` names them."""

from __future__ import annotations

import importlib
import pkgutil

from trtship.bench.peers.base import Peer, Runner, Task
from trtship.errors import SpecError

__all__ = ["Peer", "Runner", "Task", "find", "names"]


def _all() -> dict[str, type[Peer]]:
    modules = [
        importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__) if m.name != "base"
    ]
    kinds = [
        k
        for module in modules
        for k in vars(module).values()
        if isinstance(k, type) and k.__module__ == module.__name__
    ]
    return {kind.name: kind for kind in kinds if issubclass(kind, Peer)}


def names() -> tuple[str, ...]:
    return tuple(sorted(_all()))


def find(name: str) -> Peer:
    """The peer of that name. Raises SpecError."""
    known = _all()
    if name not in known:
        raise SpecError(
            f"--against {name!r} names no peer", why=f"the peers are {', '.join(sorted(known))}", do="name some of them"
        )
    return known[name]()
