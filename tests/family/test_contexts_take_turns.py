"""Contexts of one engine take turns in TensorRT: two that enqueued at once ended the process on an H100."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from trtship.family import context as context_module
from trtship.family.engine import Engine


class Native:
    """TensorRT's objects; `most` is how many of its calls were under way at once."""

    num_io_tensors = 0
    num_optimization_profiles = 0

    def __init__(self) -> None:
        self._lock, self._now, self.most = threading.Lock(), 0, 0

    def _busy(self, *_: Any) -> Any:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        time.sleep(0.002)
        with self._lock:
            self._now -= 1
        return True

    set_input_shape = execute_async_v3 = _busy

    def get_device_memory_size_for_profile_v2(self, profile: int) -> int:
        return 4

    def create_execution_context(self, strategy: Any) -> Native:
        self._busy()
        return self


@pytest.mark.parametrize("engines", [1, 2])
def test_contexts_of_one_engine_take_turns_and_those_of_two_do_not(
    engines: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    native, module = (
        Native(),
        SimpleNamespace(__name__="stand_in", ExecutionContextAllocationStrategy=SimpleNamespace()),
    )
    module.ExecutionContextAllocationStrategy.STATIC = "static"
    quiet: Callable[..., Any] = lambda module: _Quiet()  # noqa: E731 - TensorRT's log is no part of it
    monkeypatch.setattr(context_module, "recording", quiet)
    monkeypatch.setattr("trtship.family.engine.recording", quiet)
    made = [Engine(module, native, None, variables={}) for _ in range(engines)]

    def work(index: int) -> None:
        for turn in range(10):
            found = made[index % engines].create_context(0, 1)
            found.set_shapes({"x": (turn + 1, index)})
            found.execute({}, 1)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (native.most > 1) is (engines > 1)


class _Quiet:
    def __enter__(self) -> list[str]:
        return []

    def __exit__(self, *_: object) -> None:
        pass
