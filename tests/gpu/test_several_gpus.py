"""A session on a GPU that is not the first, and one on each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_session_on_gpu import Interface, assert_right, images, made_in, open_plan

from in_threads import in_threads
from trtship.errors import InputError
from trtship.gpu import list_gpus
from trtship.session.cuda import Cuda
from trtship.session.tensorrt import TensorRTSession

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.skipif(len(list_gpus()) < 2, reason="needs two GPUs")

Sessions = tuple[TensorRTSession, TensorRTSession]


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory, gpu_cache: Path) -> bytes:
    return made_in(tmp_path_factory.mktemp("several")).plan


@pytest.fixture
def sessions(plan: bytes) -> Iterator[Sessions]:
    with open_plan(plan, device=0) as first, open_plan(plan, device=1) as second:
        yield first, second


def tensor(x: np.ndarray[Any, Any], device: int) -> Any:
    return torch.from_numpy(x).to(f"cuda:{device}")


def test_gpus_are_counted_as_cuda_counts_them() -> None:
    found = [f"GPU-{torch.cuda.get_device_properties(number).uuid}" for number in range(torch.cuda.device_count())]
    assert [gpu.uuid for gpu in list_gpus()] == found


def test_the_second_gpu_runs_what_is_on_it_whichever_is_the_current_one(sessions: Sessions) -> None:
    for current in (0, 1):
        with torch.cuda.device(current):
            for turn in range(4):  # eagerly, captured, replayed
                for device, session in enumerate(sessions):
                    x = images(13, turn)
                    found = session.infer({"x": tensor(x, device)})["y"]
                    assert found.device == torch.device("cuda", device)
                    assert_right(found.cpu().numpy(), x)
                    assert_right(session.infer({"x": x})["y"], x)
                    (mapped,) = session.map([{"x": x}])
                    assert_right(mapped["y"], x)
            assert torch.cuda.current_device() == current


def test_arrays_that_tell_an_address_alone_are_taken_where_they_lie(sessions: Sessions) -> None:
    for current in (0, 1):
        with torch.cuda.device(current):
            for device, session in enumerate(sessions):
                x = images(8, device)
                here, there = tensor(x, device), tensor(x, 1 - device)
                for index in (0, 1):
                    torch.cuda.synchronize(index)  # this interface says nothing of streams
                assert_right(session.infer({"x": Interface(here)})["y"].get(), x)
                with pytest.raises(InputError, match=f"on cuda:{1 - device}, and this session runs on cuda:{device}"):
                    session.infer({"x": Interface(there)})
            assert torch.cuda.current_device() == current


def test_results_are_ordered_on_the_callers_stream_of_the_second_gpu(sessions: Sessions) -> None:
    x = images(8)
    with torch.cuda.device(1):
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(4):
                mine = torch.zeros((8, 3, 16, 16), device="cuda:1")
                torch.cuda._sleep(50_000_000)
                mine.copy_(tensor(x, 1))
                doubled = sessions[1].infer({"x": mine})["y"] * 2
        stream.synchronize()
    assert_right((doubled / 2).cpu().numpy(), x)


def test_a_tensor_of_another_gpu_is_refused(sessions: Sessions) -> None:
    for device, session in enumerate(sessions):
        with pytest.raises(InputError, match=f"cuda:{1 - device}, and this session runs on cuda:{device}"):
            session.infer({"x": tensor(images(2), 1 - device)})


def test_both_gpus_work_at_once(sessions: Sessions) -> None:
    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        session = sessions[seed % 2]
        for turn in range(200):
            x = images(int(rng.integers(1, 41)), 1000 * seed + turn)
            way = turn % 2
            found = session.infer({"x": tensor(x, seed % 2) if way else x})["y"]
            assert_right(found.cpu().numpy() if way else found, x)

    assert in_threads(work, 8) == []


@pytest.mark.alone
def test_each_session_takes_memory_of_its_own_gpu(plan: bytes) -> None:
    """The plan's weights and buffers, and nothing of the other GPU's."""

    def free() -> list[int]:
        found = []
        for gpu in (Cuda(0), Cuda(1)):
            with gpu.selected():
                found.append(gpu.free_memory())
        return found

    with open_plan(plan, device=1) as warm:  # what CUDA takes once
        warm.infer({"x": images(32)})
    before = free()
    held = []
    for _ in range(64):
        held.append(open_plan(plan, device=1))
        held[-1].infer({"x": images(32)})
    taken = [was - now for was, now in zip(before, free(), strict=True)]
    expected = sum(session.memory.total for session in held) * 2**20
    for session in held:
        session.close()
    assert taken[0] < 2**20, taken
    assert taken[1] > expected / 2, (taken, expected)
