"""A session that is closed while others call it, and one that is called while torch is being imported."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import types
from typing import Any

import numpy as np
import pytest

from graphs import model_of
from trtship.errors import InputError
from trtship.session.base import Session, is_torch
from trtship.session.onnxruntime import OnnxRuntimeSession
from trtship.spec import TensorSpec

GRAPH = model_of("(float[B, 4] x) => (float[B, 4] y) { y = Neg(x) }").SerializeToString()
X = np.ones((2, 4), np.float32)


def outcomes(kind: str, rounds: int) -> set[str]:
    """What calls came to while the session was closed: "right", or the error's text."""
    found: set[str] = set()

    async def many(session: OnnxRuntimeSession) -> None:
        async def one(delay: int) -> None:
            for _ in range(delay):
                await asyncio.sleep(0)
            try:
                result = (await session.ainfer({"x": X}))["y"]
                found.add("right" if np.array_equal(result, -X) else "wrong")
            except BaseException as error:
                found.add(f"{type(error).__name__}: {error}".splitlines()[0])

        closer = threading.Thread(target=session.close)
        tasks = [asyncio.ensure_future(one(index)) for index in range(40)]
        await asyncio.sleep(0)
        closer.start()
        await asyncio.gather(*tasks)
        closer.join()

    def calls(session: OnnxRuntimeSession, ready: threading.Barrier) -> None:
        ready.wait()
        for _ in range(20):
            try:
                result = session.infer({"x": X})["y"]
                found.add("right" if np.array_equal(result, -X) else "wrong")
            except BaseException as error:
                found.add(f"{type(error).__name__}: {error}".splitlines()[0])

    for _ in range(rounds):
        session = OnnxRuntimeSession(GRAPH)
        if kind == "ainfer":
            asyncio.run(many(session))
        else:
            ready = threading.Barrier(4)
            threads = [threading.Thread(target=calls, args=(session, ready)) for _ in range(3)]
            for thread in threads:
                thread.start()
            ready.wait()
            session.close()
            for thread in threads:
                thread.join()
    return found


@pytest.mark.parametrize("kind", ["ainfer", "infer"])
def test_calls_while_it_is_closed_are_right_or_told_that_it_is_closed(kind: str) -> None:
    found = outcomes(kind, rounds=40)
    assert found <= {"right", "InputError: this session is closed"}
    assert "InputError: this session is closed" in found


class Failing(Session):
    """A backend that fails once what it holds is gone."""

    runtime = "a test"
    inputs = outputs = (TensorSpec(name="x", shape=("B", 4)),)

    def __init__(self) -> None:
        self.running, self.closed = threading.Event(), threading.Event()

    def _run(self, feeds: Any) -> Any:
        self.running.set()
        self.closed.wait(10)
        raise AttributeError("'NoneType' object has no attribute 'run'")


def test_what_fails_since_it_was_closed_is_told_as_that() -> None:
    session, errors = Failing(), []

    def call() -> None:
        try:
            session.infer({"x": X})
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    session.running.wait(10)
    session.close()
    session.closed.set()
    thread.join()
    assert [type(error) for error in errors] == [InputError]
    assert "closed" in str(errors[0])


def test_an_executor_that_is_shut_down_in_between_is_told_as_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    session = OnnxRuntimeSession(GRAPH)
    session.infer({"x": X})
    usual = session._executor

    def late() -> Any:
        threads = usual()
        session.close()
        return threads

    monkeypatch.setattr(session, "_executor", late)
    with pytest.raises(InputError, match="closed"):
        asyncio.run(session.ainfer({"x": X}))


def test_a_module_that_is_half_imported_has_no_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", types.ModuleType("torch"))
    assert not is_torch(X)
    with OnnxRuntimeSession(GRAPH) as session:
        assert np.array_equal(session.infer({"x": X})["y"], -X)


IMPORTING = """
import sys, threading
import numpy as np
from trtship.session.onnxruntime import OnnxRuntimeSession
session = OnnxRuntimeSession(bytes.fromhex(sys.argv[1]))
x = np.ones((2, 4), np.float32)

class Other:
    def __dlpack__(self, **asked): return x.__dlpack__(**asked)
    def __dlpack_device__(self): return x.__dlpack_device__()

session.infer({"x": x}), session.infer({"x": Other()})
assert "torch" not in sys.modules
done = threading.Event()
def load():
    import torch
    done.set()
thread = threading.Thread(target=load)
thread.start()
calls = 0
while not done.is_set():
    for one in (x, Other()):
        assert np.array_equal(session.infer({"x": one})["y"], -x)
        calls += 1
thread.join()
import torch
assert torch.equal(session.infer({"x": torch.ones(2, 4)})["y"], -torch.ones(2, 4))
print(calls)
"""


def test_calls_go_on_while_another_thread_imports_torch() -> None:
    command = [sys.executable, "-c", IMPORTING, GRAPH.hex()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 100
