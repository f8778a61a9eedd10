"""What the plain TensorRT session does, over stand-ins for CUDA and TensorRT (`fake_gpu`). On a GPU: tests/gpu."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from fake_gpu import GPU, FakeCuda, FakeEngine, FakeFamily, OnGpu

from trtship.errors import DeviceError, InputError
from trtship.gpu import Gpu
from trtship.session import device, plain
from trtship.session.plain import PlainTensorRTSession

Opened = tuple[PlainTensorRTSession, FakeCuda, FakeEngine]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Opened]:
    cuda = FakeCuda()
    engine = FakeEngine(cuda)
    monkeypatch.setattr(plain, "Cuda", lambda device: cuda)
    monkeypatch.setenv("TRTSHIP_CACHE", str(tmp_path))
    family: Any = FakeFamily(engine)
    with PlainTensorRTSession(b"plan", family, gpu=GPU) as session:
        yield session, cuda, engine


def rows(count: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal((count, 4)).astype(np.float32)


@pytest.mark.parametrize("count", [1, 4, 5, 8, 19])
def test_batches_of_any_size_give_their_rows(opened: Opened, count: int) -> None:
    x = rows(count)
    found = opened[0].infer({"x": x})["y"]
    assert isinstance(found, np.ndarray)
    np.testing.assert_array_equal(found, 2 * x + 1)


def test_torch_tensors_of_the_host_come_back_as_such(opened: Opened) -> None:
    x = torch.from_numpy(rows(4))
    torch.testing.assert_close(opened[0].infer({"x": x})["y"], 2 * x + 1, rtol=0, atol=0)


def test_arrays_with_gaps_are_laid_out_first(opened: Opened) -> None:
    wide = np.repeat(rows(4), 2, axis=1)
    np.testing.assert_array_equal(opened[0].infer({"x": wide[:, ::2]})["y"], 2 * wide[:, ::2] + 1)


def test_the_narrowest_profile_gets_a_context_once(opened: Opened) -> None:
    session, _, engine = opened
    assert [c.profile for c in engine.contexts] == [1]  # the usual size has one of its own: made when it is opened
    for count in (4, 8, 8, 3, 5, 4):
        session.infer({"x": rows(count)})
    assert [c.profile for c in engine.contexts] == [1, 2, 0]


def test_it_uses_no_graphs(opened: Opened) -> None:
    session, cuda, _ = opened
    for _ in range(5):
        session.infer({"x": rows(4)})
    assert not {"capture", "launch"} & set(cuda.calls)
    assert cuda.calls.count("execute") == 5


def test_poison_is_there_before_each_run(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    session, _, engine = opened
    session.poison = True
    for context in engine.contexts:
        monkeypatch.setattr(context, "execute", lambda addresses, stream: None)
    assert np.isnan(session.infer({"x": rows(4)})["y"]).all()


def test_threads_take_turns(opened: Opened) -> None:
    session, wrong = opened[0], list[int]()

    def work(seed: int) -> None:
        for _ in range(50):
            x = rows(1 + seed % 8, seed)
            if not np.array_equal(session.infer({"x": x})["y"], 2 * x + 1):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_from_asyncio_and_through_map(opened: Opened) -> None:
    session, batches = opened[0], [rows(n, n) for n in (1, 4, 8, 9)]

    async def main() -> list[dict[str, Any]]:
        return await asyncio.gather(*[session.ainfer({"x": x}) for x in batches])

    for found in (asyncio.run(main()), list(session.map({"x": x} for x in batches))):
        for x, one in zip(batches, found, strict=True):
            np.testing.assert_array_equal(one["y"], 2 * x + 1)


def test_foreign_arrays_of_the_gpu_are_refused_and_told_who_takes_them(opened: Opened) -> None:
    with pytest.raises(InputError, match=r"fast=True\) takes these as well"):
        opened[0].infer({"x": OnGpu(rows(4))})


class SecondGpu(FakeCuda):
    """GPU 1 of two, where GPU 0 is the thread's current one; notes which was current when something was done."""

    def __init__(self) -> None:
        super().__init__(1)
        self.current, self.seen = 0, list[tuple[str, int]]()

    @contextmanager
    def selected(self) -> Iterator[None]:
        before, self.current = self.current, self.device
        try:
            yield
        finally:
            self.current = before

    def note(self, what: str) -> None:
        self.seen.append((what, self.current))

    def create_stream(self) -> int:
        self.note("stream")
        return self._handle()

    def allocate(self, size: int) -> int:
        self.note("memory")
        return super().allocate(size)


def test_all_that_it_makes_is_on_its_own_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cuda = SecondGpu()
    engine = FakeEngine(cuda)
    family: Any = FakeFamily(engine)
    create, load = engine.create_context, family.load

    def created(*arguments: Any, **options: Any) -> Any:
        cuda.note("context")
        return create(*arguments, **options)

    def loaded(*arguments: Any, **options: Any) -> Any:
        cuda.note("engine")
        return load(*arguments, **options)

    monkeypatch.setattr(engine, "create_context", created)
    monkeypatch.setattr(family, "load", loaded)
    monkeypatch.setattr(plain, "Cuda", lambda device: cuda)
    monkeypatch.setenv("TRTSHIP_CACHE", str(tmp_path))
    with PlainTensorRTSession(b"plan", family, device=1, gpu=GPU) as session:
        for count in (4, 8, 3):
            session.infer({"x": rows(count)})
    assert {what for what, _ in cuda.seen} == {"engine", "stream", "context", "memory"}
    assert {device for _, device in cuda.seen} == {1}
    assert cuda.current == 0


def test_bfloat16_of_the_host_is_run_as_it_is(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in adds nothing: bytes in, bytes out."""
    session, cuda, engine = opened
    spec = msgspec.structs.replace(session.inputs[0], dtype="bfloat16")
    session.inputs, session.outputs = (spec,), (msgspec.structs.replace(session.outputs[0], dtype="bfloat16"),)

    def moved(addresses: Any, stream: int) -> None:
        cuda.copy(addresses["y"], addresses["x"], 4 * 4 * 2, stream)

    for context in engine.contexts:
        monkeypatch.setattr(context, "execute", moved)
    x = torch.from_numpy(rows(4)).to(torch.bfloat16)
    found = session.infer({"x": x})["y"]
    assert found.dtype is torch.bfloat16
    assert torch.equal(found, x)


def test_closing_frees_everything(opened: Opened) -> None:
    session, cuda, engine = opened
    session.infer({"x": rows(8)})
    assert cuda.used
    session.close()
    assert (cuda.used, cuda.handles, engine.closed) == (0, set(), True)


@pytest.mark.parametrize("index", [-1, 1])
def test_a_gpu_that_is_not_there_is_refused(index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found: tuple[Gpu, ...] = (GPU,)
    monkeypatch.setattr(device, "list_gpus", lambda: found)
    assert device.gpu_at(0) is GPU
    with pytest.raises(DeviceError, match=f"no GPU {index} here"):
        device.gpu_at(index)
