"""The calls to CUDA on a machine without a GPU: each reaches the runtime with arguments that its bindings take, and
CUDA's refusal comes back as an error of ours. What they do, tests/gpu tells."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from trtship.errors import DeviceError, GpuFaultError, GpuMemoryError
from trtship.gpu import list_gpus
from trtship.session import cuda as cuda_module
from trtship.session.cuda import Cuda, device_of

pytest.importorskip("cuda.bindings.runtime")
pytestmark = pytest.mark.skipif(bool(list_gpus()), reason="this machine has a GPU")
MEMORY = ctypes.create_string_buffer(64)
HERE = ctypes.addressof(MEMORY)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    with monkeypatch.context() as patched:
        patched.setattr(Cuda, "select", lambda self: None)
        return Cuda()


CALLS: dict[str, Callable[[Cuda], Any]] = {
    "select": lambda c: c.select(),
    "switch": lambda c: c.switch(),
    "free_memory": lambda c: c.free_memory(),
    "create_stream": lambda c: c.create_stream(),
    "destroy_stream": lambda c: c.destroy_stream(0x1000),
    "synchronize": lambda c: c.synchronize(0),
    "settle": lambda c: c.settle(),
    "is_capturing": lambda c: c.is_capturing(0),
    "create_event": lambda c: c.create_event(),
    "destroy_event": lambda c: c.destroy_event(0x1000),
    "record": lambda c: c.record(0x1000, 0),
    "wait": lambda c: c.wait(0, 0x1000),
    "wait_on_host": lambda c: c.wait_on_host(0x1000),
    "allocate": lambda c: c.allocate(64),
    "free": lambda c: c.free(HERE),
    "allocate_pinned": lambda c: c.allocate_pinned(64),
    "free_pinned": lambda c: c.free_pinned(HERE),
    "fill": lambda c: c.fill(HERE, 0xFF, 4, 0),
    "to_device": lambda c: c.to_device(HERE, HERE + 32, 4, 0),
    "to_host": lambda c: c.to_host(HERE, HERE + 32, 4, 0),
    "copy": lambda c: c.copy(HERE, HERE + 32, 4, 0),
    "capture": lambda c: c.capture(lambda: None, 0),
    "launch": lambda c: c.launch(0x1000, 0),
    "destroy_graph": lambda c: c.destroy_graph(0x1000),
}


@pytest.mark.parametrize("name", CALLS)
def test_what_cuda_refuses_is_an_error_in_its_own_words(cuda: Cuda, name: str) -> None:
    with pytest.raises(DeviceError, match=r"CUDA: .+") as caught:
        CALLS[name](cuda)
    assert "CUDA error" in caught.value.why


def test_every_call_is_tried_here() -> None:
    own = {name for name, value in vars(Cuda).items() if callable(value) and not name.startswith("_")}
    assert own - CALLS.keys() == {"error", "selected", "back", "is_pinned"}


def test_memory_that_cuda_does_not_know_is_not_pinned(cuda: Cuda) -> None:
    assert not cuda.is_pinned(HERE)


def test_whose_memory_an_address_is_cuda_is_asked_in_its_own_words() -> None:
    with pytest.raises(DeviceError, match=r"CUDA: .+"):  # no driver here
        device_of(HERE)


@pytest.mark.parametrize(
    ("code", "kind", "device"),
    [(0, 2, 1), (0, 2, 0), (0, 3, 1), (0, 1, 1), (0, 0, None), (1, 0, None)],
    ids=["device", "first", "managed", "pinned", "unregistered", "invalid"],
)
def test_the_gpu_that_memory_belongs_to(
    monkeypatch: pytest.MonkeyPatch, code: int, kind: int, device: int | None
) -> None:
    """As CUDA tells it: of memory that it does not know the type is 0, and the device none."""
    attributes = SimpleNamespace(type=kind, device=-2 if device is None else device)
    runtime = SimpleNamespace(
        cudaPointerGetAttributes=lambda address: (code, attributes if address == HERE else None),
        cudaGetLastError=lambda: None,
    )
    monkeypatch.setattr(cuda_module, "need", lambda module, *, purpose: runtime)
    assert device_of(HERE) == device


def test_what_an_error_code_means(cuda: Cuda) -> None:
    assert type(cuda.error(2)) is GpuMemoryError
    for code in (700, 710, 719, 214):
        assert type(cuda.error(code)) is GpuFaultError
    for code in (1, 35, 900, 901):
        assert type(cuda.error(code)) is DeviceError
