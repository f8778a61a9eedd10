"""Arrays of packages that we do not know: what they refuse, where they lie, and our own results as inputs. Over
onnxruntime, and over the stand-in for a GPU."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fake_gpu import GPU, FakeCuda, FakeEngine, FakeFamily, OnGpu, Opens, array_at

from graphs import model_of
from trtship.bundle.load import BundleSession
from trtship.errors import DependencyError, GpuFaultError, InputError, OutputError
from trtship.session import tensorrt
from trtship.session.arrays import kind_of, other
from trtship.session.arrays.exchange import DeviceMemory
from trtship.session.onnxruntime import OnnxRuntimeSession
from trtship.session.tensorrt import TensorRTSession


def rows(count: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal((count, 4)).astype(np.float32)


def right(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return 2 * x + 1


@pytest.fixture
def on_host() -> Iterator[OnnxRuntimeSession]:
    graph = model_of("(float[B, 4] x) => (float[B, 4] y) { y = Neg(x) }").SerializeToString()
    with OnnxRuntimeSession(graph, providers="cpu") as session:
        yield session


# what a package refuses


class Foreign:
    """An array of another package: DLPack, and nothing else."""

    def __init__(self, array: Any, place: tuple[int, int] = (1, 0)) -> None:
        self.array, self.place = array, place

    def __dlpack__(self, **_: Any) -> Any:
        if isinstance(self.array, Exception):
            raise self.array
        return self.array.__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.place


class Nowhere(Foreign):
    def __dlpack_device__(self) -> tuple[int, int]:
        raise RuntimeError("it was moved")


class Moved(OnGpu):
    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        raise RuntimeError("it was moved")


class OfVersion1(Foreign):
    """Gives capsules of DLPack 1 to those who did not ask for them."""

    def __dlpack__(self, **_: Any) -> Any:
        return self.array.__dlpack__(max_version=(1, 0))


def read_only(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    array.flags.writeable = False
    return array


REFUSED = {
    "buffer": (Foreign(BufferError("it is on loan")), "it is on loan"),
    "type": (Foreign(TypeError("no such dtype")), "no such dtype"),
    "runtime": (Foreign(RuntimeError("it was deleted")), "it was deleted"),
    "not implemented": (Foreign(NotImplementedError()), "NotImplementedError"),
    "no device": (Nowhere(rows(2)), "it was moved"),
    "no interface": (Moved(rows(2)), "it was moved"),
    "read-only": (Foreign(read_only(rows(2))), "readonly"),
    "grad": (Foreign(torch.ones(2, 4, requires_grad=True)), "require gradient"),
    "version 1": (OfVersion1(rows(2)), "PyCapsule"),
    "on the gpu": (Foreign(RuntimeError("it was deleted"), (2, 0)), "it was deleted"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_array_that_its_package_does_not_lend_is_refused(
    name: str, on_host: OnnxRuntimeSession, opens: Opens
) -> None:
    array, why = REFUSED[name]
    for session in (on_host, opens()[0]):
        for _ in range(2):
            with pytest.raises(InputError, match=rf"x: this .*\.{type(array).__name__} cannot be read") as caught:
                session.infer({"x": array})
            assert why in caught.value.why
            assert "pass a copy of it" in caught.value.do
            assert "x: float32 [B, 4]" in caught.value.do
        with pytest.raises(InputError, match="cannot be read"):
            asyncio.run(session.ainfer({"x": array}))
        with pytest.raises(InputError, match="cannot be read"):
            next(session.map([{"x": array}]))
        with pytest.raises(OutputError, match="out= does not fit y") as refused:
            session.infer({"x": Foreign(rows(2))}, out=array)
        assert why in refused.value.why
        assert session.infer({"x": Foreign(rows(2))})["y"].shape == (2, 4)


def test_an_array_that_is_lent_once_and_no_more_is_refused(on_host: OnnxRuntimeSession) -> None:
    array = Foreign(rows(2))
    on_host.infer({"x": array})
    array.array = BufferError("it is on loan")
    with pytest.raises(InputError, match="cannot be read"):
        on_host.infer({"x": array})


def test_dtypes_that_numpy_does_not_take_over_are_refused() -> None:
    graph = model_of("(bfloat16[B, 4] x) => (bfloat16[B, 4] y) { y = Identity(x) }").SerializeToString()
    with OnnxRuntimeSession(graph, providers="cpu") as session, pytest.raises(InputError, match="cannot be read"):
        session.infer({"x": Foreign(torch.ones(2, 4, dtype=torch.bfloat16))})


def test_a_fault_of_the_gpu_stays_one(opens: Opens) -> None:
    session, _, _ = opens()
    with pytest.raises(GpuFaultError):
        session.infer({"x": Foreign(GpuFaultError("CUDA: an illegal memory access was encountered"))})  # type: ignore[arg-type]


def test_a_view_of_memory_is_refused_with_what_makes_an_array_of_it(on_host: OnnxRuntimeSession) -> None:
    with pytest.raises(InputError, match="x is a memoryview") as caught:
        on_host.infer({"x": memoryview(rows(2))})
    assert "np.asarray" in caught.value.why
    assert "x: float32 [B, 4]" in caught.value.do


# where arrays of the GPU lie


class Masked(OnGpu):
    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {**super().__cuda_array_interface__, "mask": OnGpu(np.zeros_like(self.array, bool))}


class Streamed(OnGpu):
    """One whose package tells on which stream it is worked with."""

    def __init__(self, array: np.ndarray[Any, Any], *, stream: int = 77) -> None:
        super().__init__(array)
        self.stream = stream

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {**super().__cuda_array_interface__, "stream": self.stream}


def test_an_array_with_a_mask_is_refused(opens: Opens) -> None:
    session, _, _ = opens()
    with pytest.raises(InputError, match=r"x: this .*Masked has a mask") as caught:
        session.infer({"x": Masked(rows(4))})
    assert "without it" in caught.value.do
    assert "x: float32 [B, 4]" in caught.value.do


def second(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> TensorRTSession:
    """A session on GPU 1 of the stand-in's."""
    cuda = FakeCuda(1)
    engine = FakeEngine(cuda)
    family: Any = FakeFamily(engine)
    monkeypatch.setattr(tensorrt, "Cuda", lambda device: cuda)
    monkeypatch.setenv("TRTSHIP_CACHE", str(tmp_path))
    return TensorRTSession(b"plan", family, device=1, gpu=GPU)


def test_arrays_that_tell_an_address_alone_are_where_cuda_says(
    opens: Opens, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first, second_one = opens()[0], second(monkeypatch, tmp_path)
    here, there = OnGpu(rows(4)), OnGpu(rows(4, 1))
    devices = {here.array.ctypes.data: 0, there.array.ctypes.data: 1}
    monkeypatch.setattr(other, "device_of", devices.get)
    with second_one:
        for _ in range(3):
            for session, taken, refused in ((first, here, there), (second_one, there, here)):
                found = session.infer({"x": taken})["y"]
                np.testing.assert_array_equal(found.get(), right(taken.array))
                with pytest.raises(InputError, match=r"the inputs are on cuda:\d, and this session runs on cuda:\d"):
                    session.infer({"x": refused})
                with pytest.raises(OutputError, match="another place"):
                    session.infer({"x": taken}, out=refused)
        with pytest.raises(InputError, match="on cuda:0, and this session runs on cuda:1"):
            second_one.infer({"x": first.infer({"x": here})["y"]})


def test_memory_that_cuda_does_not_know_is_refused(opens: Opens, monkeypatch: pytest.MonkeyPatch) -> None:
    session, _, _ = opens()
    monkeypatch.setattr(other, "device_of", lambda address: None)
    with pytest.raises(InputError, match="CUDA does not know the memory") as caught:
        session.infer({"x": OnGpu(rows(4))})
    assert "x: float32 [B, 4]" in caught.value.do


def test_where_there_is_no_cuda_at_all_arrays_of_a_gpu_are_refused_as_such(
    on_host: OnnxRuntimeSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(address: int) -> int:
        raise DependencyError("cuda.bindings is missing")

    monkeypatch.setattr(other, "device_of", missing)
    with pytest.raises(InputError, match="on the GPU, as an array of another package"):
        on_host.infer({"x": OnGpu(rows(4))})


def test_cuda_is_not_asked_of_arrays_that_tell_their_gpu(opens: Opens, monkeypatch: pytest.MonkeyPatch) -> None:
    session, _, _ = opens()
    result = session.infer({"x": OnGpu(rows(4))})["y"]

    def asked(address: int) -> int:
        raise AssertionError("it is told")

    class Telling(OnGpu):
        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, 0

    monkeypatch.setattr(other, "device_of", asked)
    for x in (rows(4), torch.from_numpy(rows(4)), Foreign(rows(4)), result, Telling(rows(4))):
        session.infer({"x": x})


# results on the GPU, where the caller's package has no arrays for them


class Watched(FakeCuda):
    """Notes who waits for which event."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, int, int]] = []

    def record(self, event: int, stream: int) -> None:
        self.seen.append(("record", event, stream))

    def wait(self, stream: int, event: int) -> None:
        self.seen.append(("wait", event, stream))

    def wait_on_host(self, event: int) -> None:
        self.seen.append(("host waits", event, 0))

    def synchronize(self, stream: int) -> None:
        self.seen.append(("host waits for all", 0, stream))
        super().synchronize(stream)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[tuple[TensorRTSession, Watched]]:
    cuda = Watched()
    family: Any = FakeFamily(FakeEngine(cuda))
    monkeypatch.setattr(tensorrt, "Cuda", lambda device: cuda)
    monkeypatch.setattr(other, "device_of", lambda address: 0)
    monkeypatch.setenv("TRTSHIP_CACHE", str(tmp_path))
    with TensorRTSession(b"plan", family, gpu=GPU) as session:
        yield session, cuda


def test_a_result_goes_in_again_and_the_stream_waits_for_it_not_the_host(
    watched: tuple[TensorRTSession, Watched],
) -> None:
    session, cuda = watched
    for _ in range(4):
        result = session.infer({"x": OnGpu(rows(4))})["y"]
        event = result._event
        cuda.seen.clear()
        again = session.infer({"x": result})["y"]
        assert ("host waits", event, 0) not in cuda.seen
        assert [what for what, which, _ in cuda.seen if which == event] == ["wait", "record"]
        np.testing.assert_array_equal(again.get(), right(right(rows(4))))
    cuda.seen.clear()
    assert kind_of(result) is kind_of(OnGpu(rows(1)))  # may come beside other packages' arrays
    assert not cuda.seen


def test_who_reads_a_result_that_was_written_into_again_waits_for_that(
    watched: tuple[TensorRTSession, Watched],
) -> None:
    session, cuda = watched
    out = session.infer({"x": OnGpu(rows(4))})["y"]
    for seed in range(1, 5):
        cuda.seen.clear()
        x = OnGpu(rows(4, seed))
        assert session.infer({"x": x}, out=out)["y"] is out
        assert [what for what, which, _ in cuda.seen if which == out._event][-1] == "record"
        np.testing.assert_array_equal(out.get(), right(x.array))


def test_results_in_foreign_arrays_are_there_for_whoever_reads_them_next(
    watched: tuple[TensorRTSession, Watched],
) -> None:
    session, cuda = watched
    for seed in range(4):
        x, out = OnGpu(rows(4, seed)), OnGpu(np.zeros((4, 4), np.float32))
        cuda.seen.clear()
        session.infer({"x": x}, out=out)
        assert cuda.seen[-1][0] == "host waits for all"  # it tells no stream that could wait
        ours = cuda.seen[-1][2]
        streamed = Streamed(np.zeros((4, 4), np.float32))
        cuda.seen.clear()
        session.infer({"x": x}, out=streamed)
        (_, recorded, on), (what, waited, who) = cuda.seen[-2:]
        assert (what, who, on, recorded) == ("wait", 77, ours, waited)
        threads = Streamed(np.zeros((4, 4), np.float32), stream=2)
        cuda.seen.clear()
        asyncio.run(session.ainfer({"x": x}, out=threads))  # in a thread whose stream of that name is another
        assert cuda.seen[-1][0] == "host waits for all"
        for array in (out, streamed, threads):
            np.testing.assert_array_equal(array.array, right(x.array))


def test_a_result_is_copied_to_the_host_when_asked_and_never_by_itself() -> None:
    cuda: Any = Watched()
    for dtype in ("float32", "float16", "int64", "bool", "bfloat16"):
        memory = DeviceMemory(cuda, (2, 4), dtype)
        memory.used_on(cuda.create_stream())
        array_at(memory.address, (1,)).view(np.uint8)[:] = 1
        found = memory.get()
        assert (str(found.dtype), found.shape) == (dtype, (2, 4))
        assert found.tobytes()[:4] == b"\1\1\1\1"
        with pytest.raises(TypeError, match="get"):
            np.asarray(memory)
    assert DeviceMemory(cuda, (0, 4), "float32").get().shape == (0, 4)


def test_classes_are_named_from_arrays_of_any_package_on_the_gpu(opens: Opens) -> None:
    session, _, _ = opens()
    manifest = SimpleNamespace(
        plan_inputs=session.inputs, plan_outputs=session.outputs, ranges=session.ranges, rules=()
    )
    bundle: Any = SimpleNamespace(manifest=manifest, labels=("a", "b", "c", "d"))
    loaded = BundleSession(bundle, session, "the stand-in")
    x = np.eye(4, dtype=np.float32)[[2, 0, 3]]
    for array in (OnGpu(x), session.infer({"x": OnGpu(x)})["y"], x):
        assert [best[0].label for best in loaded.classify(array)] == ["c", "a", "d"]
