"""The peers, one file each; `find` names them."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence

from trtship.bench.peers.base import Peer, Runner, Task
from trtship.errors import SpecError

__all__ = ["Peer", "Runner", "Task", "choose", "find", "names"]


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


def choose(texts: Sequence[str]) -> tuple[dict[str, Peer], dict[str, tuple[str, ...]]]:
    """`["eager", "compile:reduce-overhead"]`: the peers by name, and the variants of each that take part. A name
    without a variant stands for all of them. Raises SpecError."""
    peers: dict[str, Peer] = {}
    variants: dict[str, tuple[str, ...]] = {}
    for text in texts:
        name, colon, variant = text.partition(":")
        peer = peers.setdefault(name, find(name))
        if colon and variant not in filter(None, peer.variants):
            why = f"its variants are {', '.join(peer.variants)}" if any(peer.variants) else f"{name} has no variants"
            raise SpecError(f"--against {text!r} names no variant of {name}", why=why, do=f"--against {name} for all")
        asked = {*variants.get(name, ()), *((variant,) if colon else peer.variants)}
        variants[name] = tuple(v for v in peer.variants if v in asked)
    return peers, variants
