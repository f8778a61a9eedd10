"""What becomes of compiled kernels around an engine. (TensorRT itself needs a GPU for this: tests/gpu.)"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from trtship.errors import DeviceError
from trtship.family.engine import Engine


class Cache:
    def __init__(self) -> None:
        self.held = b""

    def deserialize(self, saved: bytes) -> bool:
        self.held = saved
        return not saved.startswith(b"old")

    def reset(self) -> None:
        self.held = b""

    def serialize(self) -> bytes:
        return self.held


class Settings:
    def __init__(self) -> None:
        self.cache: Cache | None = None

    def create_runtime_cache(self) -> Cache:
        return Cache()

    def set_execution_context_allocation_strategy(self, strategy: str) -> None:
        self.strategy = strategy

    def set_runtime_cache(self, cache: Cache) -> bool:
        self.cache = cache
        return True


class FakeEngine:
    """Its contexts are what they were created from; `refuses` says of which of them TensorRT makes none."""

    num_io_tensors = 0
    num_optimization_profiles = 0

    def __init__(self, refuses: type) -> None:
        self._refuses = refuses

    def create_runtime_config(self) -> Settings:
        return Settings()

    def get_device_memory_size_for_profile_v2(self, profile: int) -> int:
        return 4

    def create_execution_context(self, made_from: Any) -> Any:
        return None if isinstance(made_from, self._refuses) else made_from


def engine(*, refuses: type, saved: bytes = b"kernels", has_cache: bool = True) -> Engine:
    names: dict[str, Any] = {"ExecutionContextAllocationStrategy": SimpleNamespace(STATIC="static")}
    rtx = pytest.importorskip("tensorrt_rtx")
    names |= {"__name__": "fake", "ILogger": rtx.ILogger} | ({"IRuntimeCache": Cache} if has_cache else {})
    module = SimpleNamespace(**names)
    return Engine(module, FakeEngine(refuses), None, variables={}, kernels=saved)


class Nothing:
    pass


def test_contexts_get_the_kernels_that_were_kept() -> None:
    found = engine(refuses=Nothing)
    found.create_context(0, 0)
    assert found.kernels.serialized() == b"kernels"
    assert not found.kernels.discarded


def test_kernels_that_this_machine_cannot_use_are_left_out() -> None:
    found = engine(refuses=Nothing, saved=b"old kernels")
    found.create_context(0, 0)
    assert found.kernels.serialized() == b""


def test_a_context_that_cannot_be_made_with_kept_kernels_is_made_without() -> None:
    found = engine(refuses=Settings)
    found.create_context(0, 0)
    assert found.kernels.discarded
    assert found.kernels.serialized() == b""


def test_a_context_that_cannot_be_made_at_all_is_an_error() -> None:
    with pytest.raises(DeviceError, match="could not create an execution context"):
        engine(refuses=object).create_context(0, 0)


def test_a_tensorrt_without_a_runtime_cache_keeps_none() -> None:
    found = engine(refuses=Settings, has_cache=False)
    found.create_context(0, 0)
    assert found.kernels.serialized() == b""
    assert not found.kernels.discarded
