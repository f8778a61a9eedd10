"""The session on a real plan: every kind of array, streams, graphs, threads, processes, memory and faults.

The plan is small (one product and an addition, several profiles), so that a session is made in milliseconds and each
test is about the session.
"""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from graphs import written
from trtship.engine import plan_from_onnx
from trtship.errors import ForkedError, GpuMemoryError, InputError, OutputError
from trtship.family import choose_family
from trtship.gpu import list_gpus
from trtship.session.arrays.exchange import DeviceMemory
from trtship.session.cuda import Cuda
from trtship.session.tensorrt import TensorRTSession
from trtship.spec import Precision, ShapeRange, TensorSpec

RANGES = {"B": ShapeRange(min=1, opt=8, max=32)}
FEATURES, CLASSES = 3 * 16 * 16, 64
INPUTS = (TensorSpec(name="x", shape=("B", 3, 16, 16)),)
OUTPUTS = (TensorSpec(name="y", shape=("B", CLASSES)),)
WEIGHT = np.random.default_rng(5).standard_normal((FEATURES, CLASSES)).astype(np.float32) / 28
BODY = """(float[B, 3, 16, 16] x) => (float[B, 64] y) {
    shape = Constant<value_ints = [-1, 768]>()
    flat = Reshape(x, shape)
    product = MatMul(flat, w)
    y = Relu(product)
}"""
CLOSE = 2e-3
"""Relative L2 of a product in TF32, and of two runs of it: its roundings are 2^-11 = 5e-4 each. A row that is
another's, or none's, is off by 1 and more."""


class Made(NamedTuple):
    plan: bytes
    file: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, gpu_cache: Path) -> Made:
    return made_in(tmp_path_factory.mktemp("session"))


def made_in(folder: Path) -> Made:
    graph = written(folder / "m.onnx", BODY, w=WEIGHT)
    family, _ = choose_family(None, tf32=True)
    plan = plan_from_onnx(
        graph, family=family, inputs=INPUTS, ranges=RANGES, single=(1, 8, 32), precision=Precision.TF32
    )
    (folder / "model.plan").write_bytes(plan.data)
    return Made(plan.data, folder / "model.plan")


def open_plan(plan: bytes, **options: Any) -> TensorRTSession:
    family, _ = choose_family(None, tf32=True)
    return TensorRTSession(plan, family, inputs=INPUTS, outputs=OUTPUTS, **options)


@pytest.fixture
def session(made: Made) -> Iterator[TensorRTSession]:
    with open_plan(made.plan) as opened:
        yield opened


def images(count: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal((count, 3, 16, 16)).astype(np.float32)


def right(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.maximum(x.reshape(len(x), -1).astype(np.float64) @ WEIGHT.astype(np.float64), 0)


def assert_right(found: Any, x: np.ndarray[Any, Any]) -> None:
    found, expected = np.asarray(found), right(x)
    assert found.shape == expected.shape
    assert found.dtype == np.float32
    off = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert off.max() <= CLOSE, off


def gpu_mib() -> float:
    """What this process has on the GPU; all that is not free where the driver does not tell."""
    import torch

    torch.cuda.synchronize()
    gc.collect()
    asked = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    rows = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.splitlines()
    mine = [row.split(", ")[1] for row in rows if row.startswith(f"{os.getpid()}, ")]
    if mine and mine[0].isdecimal():
        return float(mine[0])
    free, total = torch.cuda.mem_get_info()
    return float(total - free) / 2**20


def resident_mib() -> float:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


# every kind of array


class Package(NamedTuple):
    """How a package's arrays are made on the GPU and come back, and how its pointer is told."""

    name: str
    make: Callable[[np.ndarray[Any, Any]], Any]
    back: Callable[[Any], np.ndarray[Any, Any]]
    kind: Callable[[], type]
    empty: Callable[[tuple[int, ...]], Any] | None


def torch_package() -> Package:
    torch = pytest.importorskip("torch")
    return Package(
        "torch",
        lambda x: torch.from_numpy(x).cuda(),
        lambda t: t.cpu().numpy(),
        lambda: torch.Tensor,
        lambda shape: torch.zeros(shape, device="cuda"),
    )


def cupy_package() -> Package:
    cupy = pytest.importorskip("cupy")
    return Package("cupy", cupy.asarray, cupy.asnumpy, lambda: cupy.ndarray, lambda shape: cupy.zeros(shape, "float32"))


def jax_package() -> Package:
    jax = pytest.importorskip("jax")
    if jax.default_backend() != "gpu":
        pytest.skip("this JAX has no GPU")
    return Package("jax", lambda x: jax.device_put(x), np.asarray, lambda: jax.Array, None)


PACKAGES = {"torch": torch_package, "cupy": cupy_package, "jax": jax_package}


@pytest.fixture(params=PACKAGES)
def package(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Package:
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # else JAX takes three quarters of the memory
    return PACKAGES[request.param]()


def test_arrays_of_the_gpu_come_back_as_their_own_kind(session: TensorRTSession, package: Package) -> None:
    for seed, count in enumerate((1, 8, 8, 8, 32, 5, 5, 5, 8, 32, 37, 37)):
        x = images(count, seed)
        found = session.infer({"x": package.make(x)})["y"]
        assert isinstance(found, package.kind())
        assert_right(package.back(found), x)


def test_results_outlive_the_session_and_later_calls(made: Made, package: Package) -> None:
    with open_plan(made.plan) as opened:
        kept = [(images(8, seed), opened.infer({"x": package.make(images(8, seed))})["y"]) for seed in range(12)]
    for x, found in kept:
        assert_right(package.back(found), x)


def test_inputs_may_be_let_go_of_at_once(session: TensorRTSession, package: Package) -> None:
    """Their memory is soon another array's; what the plan reads of it must have been read."""
    session.warm_up([32])
    for seed in range(30):
        x = images(32, seed)
        found = session.infer({"x": package.make(x)})["y"]
        package.make(np.full_like(x, np.nan))
        assert_right(package.back(found), x)


def test_out_is_written_in_place(session: TensorRTSession, package: Package) -> None:
    if package.empty is None:
        x = package.make(images(8))
        with pytest.raises(OutputError):
            session.infer({"x": x}, out=session.infer({"x": x})["y"])
        return
    out = package.empty((8, CLASSES))
    for seed in range(4):
        x = images(8, seed)
        assert session.infer({"x": package.make(x)}, out=out)["y"] is out
        assert_right(package.back(out), x)
    with pytest.raises(OutputError, match=r"\[7, 64\]"):
        session.infer({"x": package.make(images(8))}, out=package.empty((7, CLASSES)))
    with pytest.raises(OutputError, match="the inputs are not"):
        session.infer({"x": package.make(images(8))}, out=np.zeros((8, CLASSES), np.float32))


def test_a_wrong_dtype_or_shape_is_refused_with_the_spec(session: TensorRTSession, package: Package) -> None:
    for wrong in (images(2).astype(np.float16), images(2)[:, :2], images(2)[0]):
        with pytest.raises(InputError) as caught:
            session.infer({"x": package.make(wrong)})
        assert "x: float32 [B, 3, 16, 16]" in caught.value.do


def test_numpy_torch_and_jax_on_the_host(session: TensorRTSession) -> None:
    torch = pytest.importorskip("torch")
    for count in (1, 3, 8, 8, 8, 32, 40):
        x = images(count)
        assert_right(session.infer({"x": x})["y"], x)
        found = session.infer({"x": torch.from_numpy(x)})["y"]
        assert found.device.type == "cpu"
        assert_right(found.numpy(), x)
    x = images(16)
    assert_right(session.infer({"x": x[::2]})["y"], x[::2])
    out = np.zeros((8, CLASSES), np.float32)
    assert session.infer({"x": x[:8]}, out=out)["y"] is out
    assert_right(out, x[:8])


class Interface:
    """Nothing but `__cuda_array_interface__`."""

    def __init__(self, tensor: Any, stream: int | None = None) -> None:
        self.tensor, self.stream = tensor, stream

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        found: dict[str, Any] = self.tensor.__cuda_array_interface__
        return found if self.stream is None else {**found, "stream": self.stream}


class Exchange:
    """Nothing but DLPack."""

    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor

    def __dlpack__(self, *, stream: Any = None) -> Any:
        return self.tensor.__dlpack__(stream=stream)

    def __dlpack_device__(self) -> Any:
        return self.tensor.__dlpack_device__()


@pytest.mark.parametrize("kind", [Interface, Exchange])
def test_what_else_speaks_a_protocol(session: TensorRTSession, kind: type) -> None:
    torch = pytest.importorskip("torch")
    for seed, count in enumerate((8, 8, 8, 5, 40)):
        x = images(count, seed)
        tensor = torch.from_numpy(x).cuda()
        torch.cuda.synchronize()  # this interface says nothing of streams
        found = session.infer({"x": kind(tensor)})["y"]
        assert_right(torch.from_dlpack(found).cpu().numpy(), x)
        assert_right(torch.as_tensor(found, device="cuda").cpu().numpy(), x)
    with pytest.raises(InputError, match="not contiguous"):
        session.infer({"x": kind(torch.from_numpy(images(16)).cuda()[::2])})


def test_our_own_memory_is_taken_and_written_to_and_copied_to_the_host(session: TensorRTSession) -> None:
    torch = pytest.importorskip("torch")
    cuda = Cuda(0)
    with cuda.selected():
        stream = cuda.create_stream()
        for seed in range(5):
            x = images(8, seed)
            given, out = (DeviceMemory(cuda, shape, "float32") for shape in (x.shape, (8, CLASSES)))
            cuda.to_device(given.address, x.ctypes.data, x.nbytes, stream)
            given.used_on(stream)
            assert_right(session.infer({"x": given})["y"].get(), x)
            assert session.infer({"x": given}, out=out)["y"] is out
            assert_right(torch.from_dlpack(out).cpu().numpy(), x)
            assert_right(out.get(), x)
        cuda.synchronize(stream)
        cuda.destroy_stream(stream)


@pytest.mark.parametrize("streamed", [False, True])
def test_results_in_arrays_of_no_known_package_are_there_for_the_next_reader(
    session: TensorRTSession, streamed: bool
) -> None:
    torch = pytest.importorskip("torch")
    for seed in range(5):
        x, stream = images(32, seed), torch.cuda.Stream()
        with torch.cuda.stream(stream):
            tensor, out = torch.from_numpy(x).cuda(), torch.zeros(32, CLASSES, device="cuda")
            stream.synchronize()
            session.infer({"x": Interface(tensor)}, out=Interface(out, stream.cuda_stream if streamed else None))
            found = out * 2
        stream.synchronize()
        assert_right((found / 2).cpu().numpy(), x)


def test_tensors_with_gaps_are_laid_out_on_the_device(session: TensorRTSession) -> None:
    torch = pytest.importorskip("torch")
    x = images(16)
    tensor = torch.from_numpy(x).cuda()
    assert_right(session.infer({"x": tensor[::2]})["y"].cpu().numpy(), x[::2])
    laid_out = tensor.to(memory_format=torch.channels_last)
    assert_right(session.infer({"x": laid_out})["y"].cpu().numpy(), x)


# streams


def test_results_are_ordered_on_the_callers_stream(session: TensorRTSession) -> None:
    """The input is still being computed when the session is called, and the output is used at once."""
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(images(8)).cuda()
    torch.cuda.synchronize()
    streams = [torch.cuda.current_stream(), torch.cuda.Stream(), torch.cuda.Stream()]
    for turn in range(9):
        with torch.cuda.stream(streams[turn % 3]):
            late = torch.zeros_like(x)
            torch.cuda._sleep(50_000_000)
            late += x * (turn + 1)
            found = session.infer({"x": late})["y"] * 3
            late.zero_()
        streams[turn % 3].synchronize()
        assert_right((found / 3).cpu().numpy(), images(8) * (turn + 1))


def test_cupys_current_stream(session: TensorRTSession) -> None:
    cupy = pytest.importorskip("cupy")
    x = cupy.asarray(images(8))
    cupy.cuda.Device().synchronize()
    stream = cupy.cuda.Stream(non_blocking=True)
    for turn in range(6):
        with stream:
            found = session.infer({"x": x * (turn + 1)})["y"] * 3
            back = cupy.asnumpy(found, stream=stream)
        stream.synchronize()
        assert_right(back / 3, images(8) * (turn + 1))


def test_a_call_within_the_callers_own_capture_is_refused(session: TensorRTSession) -> None:
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(images(8)).cuda()
    expected = session.infer({"x": x})["y"]
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), pytest.raises(InputError, match="while a CUDA graph is captured"):
        session.infer({"x": x})
    for _ in range(3):
        assert_right(session.infer({"x": x})["y"].cpu().numpy(), images(8))
    assert_right(expected.cpu().numpy(), images(8))


def test_a_graph_is_right_after_its_context_ran_other_sizes(session: TensorRTSession) -> None:
    """One context has several graphs: what it does at other sizes in between must not reach into them."""
    torch = pytest.importorskip("torch")
    session.poison = True
    x = torch.from_numpy(images(13)).cuda()
    first = [session.infer({"x": x})["y"].cpu().numpy() for _ in range(4)][-1]
    for turn in range(1000):
        session.infer({"x": images(1 + turn % 31, turn)})
    assert session.memory.graphs_kept > 1
    np.testing.assert_array_equal(session.infer({"x": x})["y"].cpu().numpy(), first)
    assert_right(first, images(13))


# graphs


def test_graphs_on_and_off_give_the_same(made: Made) -> None:
    """Sizes with kernels of their own and without, in an order that makes one context change its shapes again and
    again: its graphs must stay right. Numpy goes by way of buffers, the tensors in place and by copies."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    with open_plan(made.plan) as on, open_plan(made.plan, graphs=0) as off:
        fixed = {n: torch.from_numpy(images(n, n)).cuda() for n in (1, 3, 8, 13, 32)}
        for turn in range(300):
            count = int(rng.choice((1, 2, 3, 5, 8, 13, 21, 31, 32, 33, 45)))
            x = images(count, turn)
            assert_right(on.infer({"x": x})["y"], x)
            found = on.infer({"x": torch.from_numpy(x).cuda()})["y"]
            other = off.infer({"x": torch.from_numpy(x).cuda()})["y"]
            assert_right(found.cpu().numpy(), x)
            assert_right(other.cpu().numpy(), x)
            n, tensor = list(fixed.items())[turn % len(fixed)]
            assert_right(on.infer({"x": tensor})["y"].cpu().numpy(), images(n, n))
        assert on.memory.graphs_kept > 0
        assert off.memory.graphs_kept == 0


def test_the_number_of_graphs_is_bounded(made: Made) -> None:
    with open_plan(made.plan, graphs=4) as opened:
        for _ in range(2):
            for count in range(1, 33):
                for _ in range(3):
                    assert_right(opened.infer({"x": images(count)})["y"], images(count))
        assert 0 < opened.memory.graphs_kept <= 4


def test_more_sizes_than_graphs_are_rounded_up_and_the_process_does_not_grow(made: Made, record_property: Any) -> None:
    """TensorRT for RTX kept 88 KiB of the host's memory each time that a context enqueued another shape: a tenth of
    these calls would leave 13 MiB."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(7)
    rows = images(40)
    on_gpu = torch.from_numpy(rows).cuda()

    def calls(opened: TensorRTSession, count: int) -> None:
        for _ in range(count):
            n = int(rng.integers(1, 41))
            picked = rng.integers(0, 40, n)
            found = opened.infer({"x": rows[picked]})["y"]
            other = opened.infer({"x": on_gpu[torch.from_numpy(picked).cuda()]})["y"]
            assert_right(found, rows[picked])
            assert_right(other.cpu().numpy(), rows[picked])

    with open_plan(made.plan, graphs=16, max_contexts=1) as opened:
        calls(opened, 1000)
        before = resident_mib()
        calls(opened, 1500)
        grown = resident_mib() - before
        assert opened.memory.graphs_kept <= 16
    record_property("grown_mib", round(grown, 2))
    assert grown < 12


def test_warm_up_leaves_nothing_to_be_made(session: TensorRTSession, record_property: Any) -> None:
    session.warm_up([1, 8, 32])
    before = session.memory
    for count in (1, 8, 32, 1, 8, 32):
        assert_right(session.infer({"x": images(count)})["y"], images(count))
    assert session.memory == before
    assert (before.contexts_open, before.graphs_kept) == (2 * 3, 2 * 3)  # in each of two lanes
    record_property("memory_mib", before._asdict())


# streams of batches


@pytest.mark.parametrize("ahead", [0, 1, 2, 4])
def test_map_gives_every_result_in_order(session: TensorRTSession, ahead: int) -> None:
    torch = pytest.importorskip("torch")
    sizes = [32, 32, 8, 1, 40, 32, 5, 32, 32, 32, 8, 9] * 3
    buffer = np.zeros((40, 3, 16, 16), np.float32)
    pinned = torch.zeros(40, 3, 16, 16).pin_memory()

    def batches(target: Any) -> Iterator[dict[str, Any]]:
        for seed, size in enumerate(sizes):
            target[:size] = images(size, seed) if target is buffer else torch.from_numpy(images(size, seed))
            yield {"x": target[:size]}

    for target in (buffer, pinned, pinned.numpy()):
        results = list(session.map(batches(target), ahead=ahead))
        for seed, (size, result) in enumerate(zip(sizes, results, strict=True)):
            assert_right(np.asarray(result["y"]), images(size, seed))


def test_map_of_tensors_of_the_gpu(session: TensorRTSession) -> None:
    torch = pytest.importorskip("torch")
    batches = ({"x": torch.from_numpy(images(8, seed)).cuda()} for seed in range(20))
    for seed, result in enumerate(session.map(batches)):
        assert_right(result["y"].cpu().numpy(), images(8, seed))


# threads and processes


def test_sixteen_threads_with_random_batches(made: Made) -> None:
    torch = pytest.importorskip("torch")
    wrong: list[BaseException] = []
    with open_plan(made.plan, max_contexts=3) as opened:
        opened.warm_up([1, 8, 32])

        def work(seed: int) -> None:
            rng = np.random.default_rng(seed)
            stream = torch.cuda.Stream()
            try:
                with torch.cuda.stream(stream):
                    for turn in range(60):
                        x = images(int(rng.integers(1, 41)), seed * 1000 + turn)
                        if seed % 2:
                            found = opened.infer({"x": torch.from_numpy(x).cuda()})["y"].cpu().numpy()
                        else:
                            found = opened.infer({"x": x})["y"]
                        assert_right(found, x)
            except BaseException as error:
                wrong.append(error)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong, wrong[:3]
        assert opened.memory.contexts_open <= 3 * 4


def test_asyncio(session: TensorRTSession) -> None:
    torch = pytest.importorskip("torch")

    async def main() -> None:
        many = [session.ainfer({"x": images(1 + seed % 32, seed)}) for seed in range(64)]
        for seed, found in enumerate(await asyncio.gather(*many)):
            assert_right(found["y"], images(1 + seed % 32, seed))
        tasks = [asyncio.create_task(session.ainfer({"x": images(32, seed)})) for seed in range(8)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert sum(isinstance(one, asyncio.CancelledError) for one in found) >= 1
        for seed, one in enumerate(found):
            if not isinstance(one, BaseException):
                assert_right(one["y"], images(32, seed))
        with torch.cuda.stream(torch.cuda.Stream()):
            on_gpu = await session.ainfer({"x": torch.from_numpy(images(8)).cuda()})
            assert_right(on_gpu["y"].cpu().numpy(), images(8))

    asyncio.run(main())


def in_child(session: TensorRTSession, told: Any) -> None:
    try:
        session.infer({"x": images(1)})
        told.put("it ran")
    except ForkedError as error:
        told.put(error.what)


def test_a_forked_child_is_refused(session: TensorRTSession) -> None:
    session.infer({"x": images(1)})
    context = multiprocessing.get_context("fork")
    told = context.Queue()
    child = context.Process(target=in_child, args=(session, told))
    child.start()
    assert told.get(timeout=60) == "this session was opened before the process forked"
    child.join(60)
    assert_right(session.infer({"x": images(1)})["y"], images(1))


def in_spawned(file: Path, told: Any) -> None:
    with open_plan(file.read_bytes()) as opened:
        found = opened.infer({"x": images(3)})["y"]
        assert_right(found, images(3))
        told.put(float(found.sum()))


def test_a_spawned_child_opens_its_own(made: Made, session: TensorRTSession) -> None:
    expected = float(session.infer({"x": images(3)})["y"].sum())
    context = multiprocessing.get_context("spawn")
    told = context.Queue()
    child = context.Process(target=in_spawned, args=(made.file, told))
    child.start()
    assert told.get(timeout=300) == pytest.approx(expected, rel=CLOSE)
    child.join(60)


# memory


@pytest.mark.alone
def test_a_thousand_sessions_leave_no_memory_behind(made: Made, record_property: Any) -> None:
    torch = pytest.importorskip("torch")
    x = images(8)
    tensor = torch.from_numpy(x).cuda()
    family, _ = choose_family(None, tf32=True)
    gpu = list_gpus()[0]
    on_gpu: list[float] = []
    on_host: list[float] = []
    begun = time.monotonic()
    for turn in range(1000):
        opened = TensorRTSession(made.plan, family, inputs=INPUTS, outputs=OUTPUTS, gpu=gpu)
        for _ in range(3):  # eagerly, captured, replayed
            found = opened.infer({"x": x})["y"]
            opened.infer({"x": tensor})
        if turn % 100 == 0:
            list(opened.map({"x": x} for _ in range(4)))
        if turn % 2:
            opened.close()
        del opened
        if turn % 100 == 99:
            on_gpu.append(gpu_mib())
            on_host.append(round(resident_mib(), 1))
    assert_right(found, x)
    record_property("gpu_mib", on_gpu)
    record_property("host_mib", on_host)
    record_property("seconds", round(time.monotonic() - begun, 1))
    assert on_gpu[-1] - on_gpu[1] < 4, on_gpu
    assert on_host[-1] - on_host[1] < 16, on_host


def test_memory_tells_what_is_held(made: Made) -> None:
    with open_plan(made.plan) as opened:
        opened.infer({"x": images(32)})
        held = opened.memory
        assert held.engine >= WEIGHT.nbytes / 2**20 / 2
        assert held.buffers >= images(32).nbytes / 2**20
        assert held.total == held.engine + held.contexts + held.buffers + held.graphs
    assert (opened.memory.contexts_open, opened.memory.graphs_kept, opened.memory.buffers) == (0, 0, 0)


def test_a_memory_limit_makes_batches_smaller_and_says_so(made: Made) -> None:
    with open_plan(made.plan) as opened:
        opened.infer({"x": images(8)})
        for _ in range(2):
            opened.infer({"x": images(1)})
        needed = opened.memory.total
    x = images(32)
    with open_plan(made.plan, memory_limit=needed + 0.05) as opened, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(4):
            assert_right(opened.infer({"x": x})["y"], x)
            assert opened.memory.total <= needed + 0.05
    assert sum("run in parts" in str(one.message) for one in told) <= 1


def test_a_limit_that_nothing_fits_in_is_named(made: Made) -> None:
    with pytest.raises(GpuMemoryError, match="memory limit"):
        open_plan(made.plan, memory_limit=0.01)


FULL = """
import sys, warnings
import numpy as np
sys.path[:0] = sys.argv[2:]
from pathlib import Path
from test_session_on_gpu import assert_right, images, open_plan
from trtship.session.cuda import Cuda
from trtship.errors import GpuMemoryError

warnings.simplefilter("always")
opened = open_plan(Path(sys.argv[1]).read_bytes())
opened.infer({"x": images(1)})
cuda, taken = Cuda(), []
size = 1 << 30
while size >= 1 << 12:  # all the rest of the GPU's memory
    try:
        taken.append(cuda.allocate(size))
    except GpuMemoryError:
        size //= 2
try:
    x = images(32)
    assert_right(opened.infer({"x": x})["y"], x)
    print("ran")
except GpuMemoryError as error:
    print("refused:", error.what)
for address in taken:
    cuda.free(address)
assert_right(opened.infer({"x": images(32)})["y"], images(32))
print("ran again")
opened.close()
"""


def in_a_process(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    here = Path(__file__).parent
    paths = [str(here), str(here.parent), str(here.parent / "faults")]
    return subprocess.run([sys.executable, "-c", code, *arguments, *paths], capture_output=True, text=True, timeout=500)


@pytest.mark.alone
def test_a_full_gpu_is_no_end(made: Made, record_property: Any) -> None:
    """With nothing left to allocate it runs smaller parts, or says that memory ran out; never anything wrong, and the
    session goes on once there is memory again."""
    done = in_a_process(FULL, str(made.file))
    record_property("said", done.stdout.splitlines())
    record_property("warned", done.stderr.splitlines()[-4:])
    assert done.returncode == 0, done.stderr[-2000:]
    first, again = done.stdout.splitlines()[-2:]
    assert first == "ran" or first.startswith("refused: ")
    assert again == "ran again"


# faults

STICKY = """
import sys
import numpy as np
sys.path[:0] = sys.argv[2:]
from pathlib import Path
import torch
from test_session_on_gpu import images, open_plan
from trtship.errors import GpuFaultError

opened = open_plan(Path(sys.argv[1]).read_bytes())
tensor = torch.from_numpy(images(8)).cuda()
for _ in range(3):
    opened.infer({"x": tensor})
index = torch.tensor([10**9], device="cuda")
torch.zeros(4, device="cuda")[index]  # an assertion on the device
try:
    torch.cuda.synchronize()  # what runs before it happens is right, and not what is asked here
except RuntimeError as error:
    print("torch:", str(error).splitlines()[0])
told = []
for feeds in (images(8), images(8), tensor, images(1)):
    try:
        opened.infer({"x": feeds})
        told.append("it ran")
    except GpuFaultError as error:
        told.append(error.what)
print(told)
try:
    list(opened.map([{"x": images(8)}]))
    print("it ran")
except GpuFaultError as error:
    print(error.what)
opened.close()
print("closed")
"""


def test_an_error_that_sticks_is_told_at_every_call(made: Made, record_property: Any) -> None:
    pytest.importorskip("torch")
    done = in_a_process(STICKY, str(made.file))
    record_property("said", done.stdout.splitlines())
    assert done.returncode == 0, done.stderr[-2000:]
    told, mapped, closed = done.stdout.splitlines()[-3:]
    assert "it ran" not in told
    assert told.count("this session is lost") >= 2
    assert "this session is lost" in mapped
    assert closed == "closed"


def test_layer_times_of_the_profile_at_hand(made: Made) -> None:
    with open_plan(made.plan) as opened:
        times = opened.layer_times({"x": images(8)}, runs=3)
    assert times
    assert all(ms >= 0 for ms in times.values())
