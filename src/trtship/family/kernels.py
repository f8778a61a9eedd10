"""The kernels that TensorRT for RTX compiles when a plan's contexts are created, kept for the next process."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, TypeAlias

from trtship.family.spares import Owner, Spares

Turn: TypeAlias = AbstractContextManager[Any]
"""What the contexts of one engine take by turns."""
SPARES = Spares()
"""Those of this process."""


class Kernels:
    """The runtime cache of one engine, shared by its contexts. TensorRT for RTX alone has one: full TensorRT compiles
    when it builds. See https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/inference-library/work-with-runtime-cache.html
    """

    def __init__(self, module: Any, engine: Any, saved: bytes, *, turn: Turn, owner: Owner | None = None) -> None:
        """`saved` is what `serialized` gave before, or nothing; it must be bytes whose hash was checked. What this
        GPU, TensorRT or CUDA cannot use, TensorRT leaves out. `turn` is what the engine's contexts share. An engine of
        the same `owner` that was closed in this process leaves its cache to this one, and then `saved` is not used."""
        self._module, self._engine, self._cache, self._turn = module, engine, None, turn
        self._owner, self.discarded, self._discarded = owner, False, None
        if hasattr(module, "IRuntimeCache"):
            self._cache = None if owner is None else SPARES.take(owner)
            if self._cache is None:
                settings = engine.create_runtime_config()
                self._cache = settings.create_runtime_cache()
                if saved and not self._cache.deserialize(saved):
                    self._cache.reset()

    def create_context(self, strategy: Any, *, fixed: bool = False, kept: bool = True) -> Any:
        """An `IExecutionContext` of this memory strategy, or None where TensorRT could not make one: its log tells.

        `fixed`: it will see one size only, so that TensorRT for RTX compiles the kernels for that size when it first
        meets it, in place of running generic ones until others are compiled in the background. `kept=False`: without
        the kernels that were kept.
        """
        if self._cache is None or not kept:
            return self._engine.create_execution_context(strategy)
        settings = self._engine.create_runtime_config()
        settings.set_execution_context_allocation_strategy(strategy)
        strategies = getattr(self._module, "DynamicShapesKernelSpecializationStrategy", None)
        if fixed and strategies is not None:
            settings.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
        if not settings.set_runtime_cache(self._cache):
            return self._engine.create_execution_context(strategy)
        return self._engine.create_execution_context(settings)

    def serialized(self) -> bytes:
        """All kernels compiled or loaded so far; nothing where there are none, or none can be kept."""
        with self._turn:
            memory = None if self._cache is None else self._cache.serialize()
            return b"" if memory is None else bytes(memory)

    def discard(self) -> None:
        """Keep none, and use none of those that were kept, for contexts from now on."""
        self.discarded, self._cache, self._discarded = True, None, self._cache  # contexts may use it still

    def close(self) -> None:
        """After the contexts, before the engine."""
        if self._cache is not None and self._owner is not None:
            SPARES.give(self._owner, self._cache)
        self._cache = self._discarded = None
        self._engine = None
