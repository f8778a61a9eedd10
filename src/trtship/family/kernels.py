"""The kernels that TensorRT for RTX compiles when a plan's contexts are created, kept for the next process."""

from __future__ import annotations

import time
from collections.abc import Hashable
from contextlib import AbstractContextManager
from typing import Any, TypeAlias

from trtship.family.spares import Owner, Spares

Turn: TypeAlias = AbstractContextManager[Any]
"""What the contexts of one engine take by turns."""
SPARES = Spares()
"""Those of this process."""


SOON, SETTLED = 1.0, 60.0
"""Seconds after something was asked for before which they are not serialized again, and after which nothing is compiled
in the background any more."""
ASKED = 4096
"""Things asked for that are remembered."""


class _Filled:
    """A kernel cache, and what contexts that have it were asked for; how often that was new, now and when it was
    serialized; and when either was, the last time, by `time.monotonic`."""

    __slots__ = ("asked", "asked_at", "cache", "news", "serialized", "serialized_at")

    def __init__(self, cache: Any) -> None:
        self.cache, self.asked = cache, set[Hashable]()
        self.news = self.serialized = 0
        self.asked_at = self.serialized_at = float("-inf")


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
        self.discarded, self._discarded = False, None
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
            held.asked_at = time.monotonic()

    @property
    def may_have_more(self) -> bool:
        """Whether there may be more to serialize than there was: nobody serialized them since something new was asked
        for; or so soon after it that kernels may have been compiled in the background since. (To serialize costs time,
        and memory in TensorRT for RTX 1.6.1, so that there is twice as long from one time to the next.)"""
        held = self._held
        if held is None or held.news != held.serialized:
            return held is not None
        after = held.serialized_at - held.asked_at
        return after < SETTLED and time.monotonic() - held.asked_at >= max(SOON, 2 * after)

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
            return b"" if memory is None else bytes(memory)

    def discard(self) -> None:
        """Keep none, and use none of those that were kept, for contexts from now on."""
        self.discarded, self._held, self._discarded = True, None, self._held  # contexts may use it still

    def close(self) -> None:
        """After the contexts; the engine may be destroyed from then on."""
        self._engine = self._discarded = None

    def leave(self) -> None:
        """To the next engine of the same owner; after this one was destroyed."""
        held, self._held = self._held, None
        if held is not None and self._owner is not None:
            SPARES.give(self._owner, held)
