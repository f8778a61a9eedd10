"""What becomes of compiled kernels around an engine. (TensorRT itself needs a GPU for this: tests/gpu.)"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import weakref
from types import SimpleNamespace
from typing import Any

import pytest

from clock import Clock
from trtship.errors import DeviceError
from trtship.family import kernels
from trtship.family.engine import Engine
from trtship.family.spares import Owner, Spares


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


def engine(*, refuses: type, saved: bytes = b"kernels", has_cache: bool = True, owner: Owner | None = None) -> Engine:
    names: dict[str, Any] = {"ExecutionContextAllocationStrategy": SimpleNamespace(STATIC="static")}
    rtx = pytest.importorskip("tensorrt_rtx")
    names |= {"__name__": "fake", "ILogger": rtx.ILogger} | ({"IRuntimeCache": Cache} if has_cache else {})
    module = SimpleNamespace(**names)
    return Engine(module, FakeEngine(refuses), None, variables={}, kernels=saved, owner=owner)


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


# kernels that an engine leaves to the next one of its plan


@pytest.fixture
def spares(monkeypatch: pytest.MonkeyPatch) -> Spares:
    made = Spares(most=3)
    monkeypatch.setattr(kernels, "SPARES", made)
    return made


def test_the_next_engine_of_a_plan_has_the_cache_of_the_one_before(spares: Spares) -> None:
    first = engine(refuses=Nothing, owner=("plan", 0))
    cache = first.kernels._held
    first.close()
    second = engine(refuses=Nothing, saved=b"not read", owner=("plan", 0))
    assert second.kernels._held is cache
    assert second.create_context(0, 0)._context.cache is cache.cache
    assert second.kernels.serialized() == b"kernels"


def test_two_engines_that_are_open_at_once_share_none(spares: Spares) -> None:
    first, second = (engine(refuses=Nothing, owner=("plan", 0)) for _ in range(2))
    caches = {id(one.kernels._held) for one in (first, second)}
    assert len(caches) == 2
    first.close()
    second.close()
    again = [engine(refuses=Nothing, owner=("plan", 0)) for _ in range(2)]
    assert {id(one.kernels._held) for one in again} == caches


@pytest.mark.parametrize("owner", [("other", 0), ("plan", 1), None], ids=["another plan", "another gpu", "nobody"])
def test_no_other_engine_has_it(spares: Spares, owner: Owner | None) -> None:
    first = engine(refuses=Nothing, owner=("plan", 0))
    cache = first.kernels._held
    first.close()
    assert engine(refuses=Nothing, owner=owner).kernels._held is not cache


def test_there_may_be_more_to_serialize_at_once_where_something_is_new_and_then_ever_more_rarely(
    spares: Spares, clock: Clock
) -> None:
    opened = engine(refuses=Nothing, owner=("plan", 0))

    def at(*seconds: float) -> list[bool]:
        """Whether there may be more then, counted from what is new; if so, it is serialized."""
        seen, begun = [], clock.now
        for second in seconds:
            clock.now = begun + second
            seen.append(opened.kernels.may_have_more)
            if seen[-1]:
                opened.kernels.serialized()
        return seen

    opened.kernels.ask(0)
    assert at(0, 0.5, 1, 2.5, 3, 6, 7, 14, 15, 1000) == [True, *[False, True] * 4, True]
    opened.close()
    clock.now += 600
    opened = engine(refuses=Nothing, owner=("plan", 0))
    opened.kernels.ask(0)  # as the one before
    assert at(0, 10, 7200, 7300, 7329) == [True, False, True, False, True]
    opened.kernels.ask((0, (4, 3)))
    assert at(0, 0.5, 1) == [True, False, True]


def test_what_is_asked_for_while_they_are_serialized_is_news(
    spares: Spares, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = engine(refuses=Nothing, owner=("plan", 0))
    opened.kernels.ask(0)
    assert opened.kernels._held is not None
    monkeypatch.setattr(opened.kernels._held.cache, "serialize", lambda: opened.kernels.ask(1))
    opened.kernels.serialized()
    clock.now += 0.1
    assert opened.kernels.may_have_more


def test_a_cache_is_left_once(spares: Spares) -> None:
    opened = engine(refuses=Nothing, owner=("plan", 0))
    opened.close()
    opened.close()
    assert spares.take(("plan", 0)) is not None
    assert spares.take(("plan", 0)) is None


def test_kernels_that_were_not_serialized_may_be_more_still(spares: Spares, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = engine(refuses=Nothing, owner=("plan", 0))
    opened.kernels.ask(0)

    def fails() -> bytes:
        raise RuntimeError("bad allocation")

    assert opened.kernels._held is not None
    monkeypatch.setattr(opened.kernels._held.cache, "serialize", fails)
    with pytest.raises(RuntimeError):
        opened.kernels.serialized()
    assert opened.kernels.may_have_more


def test_what_was_asked_for_is_remembered_within_bounds(spares: Spares) -> None:
    opened = engine(refuses=Nothing, owner=("plan", 0))
    for number in range(3 * kernels.ASKED):
        opened.kernels.ask(number)
    assert opened.kernels._held is not None
    assert len(opened.kernels._held.asked) <= kernels.ASKED


def test_the_next_engine_has_the_cache_once_the_last_one_is_destroyed(spares: Spares) -> None:
    opened = engine(refuses=Nothing, owner=("plan", 0))
    native = weakref.ref(opened._engine)
    alive: list[bool] = []

    class Watching(Spares):
        def give(self, owner: Owner, cache: Any) -> None:
            alive.append(native() is not None)

    kernels.SPARES = Watching()
    opened.close()
    assert alive == [False]


def test_a_cache_may_be_given_in_the_middle_of_another_call(spares: Spares) -> None:
    """By a session that nobody closed, when Python destroys it: that may be at any moment, in any thread."""

    class Plan(str):
        def __eq__(self, other: object) -> bool:
            if not given:
                given.append(True)
                spares.give(("another plan", 0), "another")
                assert spares.take(("plan 2", 0)) == "two"
            return str.__eq__(self, other)

        __hash__ = str.__hash__

    given: list[bool] = []
    spares.give(("plan 1", 0), "one")
    spares.give(("plan 2", 0), "two")
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(spares.take((Plan("plan 1"), 0))), daemon=True)
    thread.start()
    thread.join(20)
    assert found == ["one"]
    assert spares.take(("another plan", 0)) == "another"


def test_a_cache_that_makes_way_is_destroyed_where_nobody_waits(spares: Spares) -> None:
    class Native:
        def __del__(self) -> None:
            thread = threading.Thread(target=lambda: free.append(spares.take(("nobody's", 0)) is None), daemon=True)
            thread.start()
            thread.join(20)

    free: list[bool] = []
    spares.give(("plan", 0), Native())
    for number in range(3):
        spares.give((f"plan {number}", 0), number)
    assert free == [True]


def test_kernels_that_were_discarded_are_left_to_nobody(spares: Spares) -> None:
    first = engine(refuses=Settings, owner=("plan", 0))
    discarded = first.kernels._held
    first.create_context(0, 0)
    first.close()
    assert engine(refuses=Nothing, owner=("plan", 0)).kernels._held is not discarded
    assert spares.take(("plan", 0)) is None


def test_spares_of_each_gpu_are_bounded_and_those_given_first_make_way(spares: Spares) -> None:
    for number in range(5):
        spares.give((f"plan {number}", 0), number)
    spares.give(("plan 0", 1), "of another GPU")
    assert [spares.take((f"plan {number}", 0)) for number in range(5)] == [None, None, 2, 3, 4]
    assert spares.take(("plan 0", 1)) == "of another GPU"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_neither_uses_nor_destroys_them() -> None:
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["child", "None", "parent", "kept"]


FORK = """
import os, threading
from trtship.family.spares import Spares

class Native:
    def __del__(self):
        print("destroyed", flush=True)

spares = Spares(most=1)
spares.give(("plan", 0), Native())
held, forked = threading.Event(), threading.Event()

def hold():
    with spares._lock:
        held.set()
        forked.wait()

threading.Thread(target=hold).start()
held.wait()
child = os.fork()
forked.set()
if child == 0:
    print("child", spares.take(("plan", 0)), flush=True)
    spares.give(("plan", 0), Native())
else:
    os.waitpid(child, 0)
    found = spares.take(("plan", 0))
    print("parent", "kept" if found else "lost", flush=True)
    spares.give(("plan", 0), found)
    del found
"""
