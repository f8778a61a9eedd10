"""The kernels that TensorRT for RTX compiles when a plan's contexts are created, kept for the next process."""

from __future__ import annotations

import time
from collections.abc import Hashable
from contextlib import AbstractContextManager
from typing import Any, TypeAlias

from trtship.family.spares import Owner, Spares
from trtship.rarely import Rarely

Turn: TypeAlias = AbstractContextManager[Any]
"""What the contexts of one engine take by turns."""
SPARES = Spares()
"""Those of this process."""


SOON, LONGEST = 1.0, 3600.0
"""Seconds after which there may be more to serialize though nothing new was asked for, since TensorRT compiles in the
background; each time twice as many as the time before, up to the second. (It costs time, and memory that TensorRT for
RTX 1.6.1 keeps.)"""
ASKED = 4096
"""Things asked for that are remembered."""


class _Filled:
    """A kernel cache; what contexts that have it were asked for, and how much of that was new, now and when it was
    serialized; when that was, by `time.monotonic`, and when it is worth it again."""

    __slots__ = ("again", "asked", "cache", "news", "serialized", "serialized_at")

    def __init__(self, cache: Any) -> None:
        self.cache, self.asked = cache, set[Hashable]()
        self.news, self.serialized, self.serialized_at = 0, 0, float("-inf")
        self.again = Rarely(0, pause=SOON, longest=LONGEST)


class Kernels:
    """The runtime cache of one engine, shared by its contexts. TensorRT for RTX alone has one: full TensorRT compiles
    when it builds. See https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/inference-library/work-with-runtime-cache.html
    """

    def __init__(self, module: Any, engine: Any, saved: bytes, *, turn: Turn, owner: Owner | None = None) -> None:
        """`saved` is what `serialized` gave before, or nothing; it must be bytes whose hash was checked. What this
        GPU, TensorRT or CUDA cannot use, TensorRT leaves out. `turn` is what the engine's contexts share. An engine of
        the same `owner` that was closed in this process leaves its cache to this one, and then `saved` is not used."""
        self._module, self._engine, self._turn, self._owner = module, engine, turn, owner
        self._held: _Filled | None = None
        self.discarded = False
        self._discarded: _Filled | None = None
        if hasattr(module, "IRuntimeCache"):
            self._held = None if owner is None else SPARES.take(owner)
            if self._held is None:
                self._held = _Filled(engine.create_runtime_config().create_runtime_cache())
                if saved and not self._held.cache.deserialize(saved):
                    self._held.cache.reset()

    def create_context(self, strategy: Any, *, fixed: bool = False, kept: bool = True) -> Any:
        """An `IExecutionContext` of this memory strategy, or None where TensorRT could not make one: its log tells.

        `fixed`: it will see one size only, so that TensorRT for RTX compiles the kernels for that size when it first
        meets it, in place of running generic ones until others are compiled in the background. `kept=False`: without
        the kernels that were kept.
        """
        if self._held is None or not kept:
            return self._engine.create_execution_context(strategy)
        settings = self._engine.create_runtime_config()
        settings.set_execution_context_allocation_strategy(strategy)
        strategies = getattr(self._module, "DynamicShapesKernelSpecializationStrategy", None)
        if fixed and strategies is not None:
            settings.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
        if not settings.set_runtime_cache(self._held.cache):
            return self._engine.create_execution_context(strategy)
        return self._engine.create_execution_context(settings)

    def ask(self, what: Hashable) -> None:
        """A context is about to do this, for which kernels are compiled where the cache has none: at once, or in the
        background."""
        held = self._held
        if held is not None and what not in held.asked:
            if len(held.asked) >= ASKED:
                held.asked.clear()
            held.asked.add(what)
            held.news += 1
            held.again.restart()

    @property
    def may_have_more(self) -> bool:
        """Whether there may be more to serialize than there was: something new was asked for since, or so much time has
        passed that it is worth to look."""
        held = self._held
        return held is not None and (held.news != held.serialized or held.again.may)

    @property
    def age(self) -> float:
        """Seconds since they were serialized; infinity where they never were."""
        held = self._held
        return float("inf") if held is None else time.monotonic() - held.serialized_at

    def serialized(self) -> bytes:
        """All kernels compiled or loaded so far; nothing where there are none, or none can be kept."""
        with self._turn:
            held = self._held
            if held is None:
                return b""
            news, begun = held.news, time.monotonic()
            memory = held.cache.serialize()
            held.serialized, held.serialized_at = news, begun
            held.again.did()
            return b"" if memory is None else bytes(memory)

    def discard(self) -> None:
        """Keep none, and use none of those that were kept, for contexts from now on."""
        if self._held is not None:
            self._discarded, self._held = self._held, None  # contexts may use it still
        self.discarded = True

    def close(self) -> None:
        """After the contexts; the engine may be destroyed from then on."""
        self._engine = self._discarded = None

    def leave(self) -> None:
        """To the next engine of the same owner; after this one was destroyed."""
        held, self._held = self._held, None
        if held is not None and self._owner is not None:
            SPARES.give(self._owner, held)
