"""What a TensorRT session decides and keeps count of, over stand-ins for CUDA and TensorRT (`fake_gpu`). Whether CUDA
and TensorRT do what is asked of them, only tests/gpu can tell."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from fake_gpu import (
    GPU,
    FakeCache,
    FakeContext,
    FakeCuda,
    FakeEngine,
    FakeFamily,
    OnGpu,
    Opens,
    array_at,
    fake_session,
)

from clock import Clock
from in_threads import in_threads
from trtship.errors import DeviceError, ForkedError, GpuFaultError, GpuMemoryError, InputError, OutputError
from trtship.family import kernels
from trtship.family.spares import Spares
from trtship.gpu import Gpu
from trtship.session import device, slot, tensorrt
from trtship.session.tensorrt import TensorRTSession


def rows(count: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal((count, 4)).astype(np.float32)


def right(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return 2 * x + 1


def steps(cuda: FakeCuda, call: Callable[[], object]) -> list[str]:
    """The calls that were made, but for copies to and from the host."""
    cuda.calls.clear()
    call()
    return [name for name in cuda.calls if name not in ("to_device", "to_host")]


def test_a_size_runs_eagerly_once_and_then_by_its_graph(opens: Opens) -> None:
    session, cuda, _ = opens()
    x = rows(4)
    seen = [steps(cuda, lambda: np.testing.assert_array_equal(session.infer({"x": x})["y"], right(x))) for _ in "abcd"]
    assert seen == [["execute"], ["execute", "capture", "execute"], ["launch"], ["launch"]]
    assert session.memory.graphs_kept == 1


def test_warm_up_makes_all_that_is_made_at_first_use(opens: Opens) -> None:
    session, cuda, engine = opens()
    session.warm_up([1, 4, 8])
    contexts = len(engine.contexts)
    assert contexts == 2 * 3  # for each profile, in each of two lanes
    with session._lanes.one():  # one is busy
        for n in (1, 4, 8):
            assert steps(cuda, lambda n=n: session.infer({"x": rows(n)})) == ["launch"]  # type: ignore[misc]
    assert len(engine.contexts) == contexts


@pytest.mark.parametrize(("limit", "sizes"), [(12, [8]), (18, [8, 4]), (24, [1, 4, 8])])
def test_warm_up_does_with_the_contexts_that_there_is_room_for(opens: Opens, limit: float, sizes: list[int]) -> None:
    """1 MiB is the engine's, n of them a context's for n rows: there is room for those of one lane."""
    session, cuda, _ = opens(memory_limit=limit)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no smaller parts
        for _ in range(3):
            session.warm_up(sizes)
            for n in sizes:
                assert steps(cuda, lambda n=n: session.infer({"x": rows(n)})) == ["launch"]  # type: ignore[misc]


def test_warm_up_ends_beside_callers_who_never_rest(opens: Opens) -> None:
    session, _, _ = opens()
    ends, x = threading.Event(), rows(4)

    def calls() -> None:
        while not ends.is_set():
            session.infer({"x": x})

    callers = [threading.Thread(target=calls) for _ in range(3)]
    for caller in callers:
        caller.start()
    warming = threading.Thread(target=session.warm_up, args=([4, 8],))
    warming.start()
    warming.join(20)
    ended = not warming.is_alive()
    ends.set()
    for thread in (*callers, warming):
        thread.join()
    assert ended


def test_a_closed_session_is_not_warmed(opens: Opens) -> None:
    session, _, _ = opens()
    session.close()
    with pytest.raises(InputError, match="closed"):
        session.warm_up([4])


def test_smaller_parts_of_tensors_on_the_gpu_are_learned_first(opens: Opens) -> None:
    """Nobody has run a piece of four rows when memory runs out under one of eight."""
    session, _, engine = opens()
    engine.cache.held = b"kernels"
    session.infer({"x": rows(4)})
    session.close()
    session, _, _ = opens(memory_limit=12)  # which makes no context before the first call: kernels were kept
    session.infer({"x": OnGpu(rows(8))})
    session._rig.ledger.limit = 6  # the GPU has filled up
    session._runs.trim()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        found = session.infer({"x": OnGpu(rows(8))})["y"]
    np.testing.assert_array_equal(array_at(found.address, found.shape), right(rows(8)))


def test_a_ring_takes_no_place_of_what_serves_all_calls_of_a_size(opens: Opens) -> None:
    session, cuda, _ = opens(graphs=8, max_contexts=1)
    for _ in range(3):
        list(session.map([{"x": rows(n)} for n in (1, 2, 3, 4) for _ in range(3)]))  # three places for each size
    for n in (5, 6):
        seen = [steps(cuda, lambda n=n: session.infer({"x": rows(n)})) for _ in range(4)]  # type: ignore[misc]
        assert seen[2:] == [["launch"], ["launch"]]
    session.warm_up(range(1, 9))
    cuda.calls.clear()
    for found, n in zip(session.map([{"x": rows(n)} for n in range(1, 9)]), range(1, 9), strict=True):
        np.testing.assert_array_equal(found["y"], right(rows(n)))
    assert "execute" not in cuda.calls  # by way of the lane's buffers, where the ring has no graphs of its own


def test_a_ring_keeps_its_memory_whatever_sizes_go_through(opens: Opens) -> None:
    session, cuda, _ = opens()
    sizes = [1, 8, 4, 2, 8, 4, 3, 8]

    def through() -> None:
        for found, n in zip(session.map({"x": rows(n)} for n in sizes), sizes, strict=True):
            np.testing.assert_array_equal(found["y"], right(rows(n)))

    through()
    held = set(cuda.memory)
    through()
    assert set(cuda.memory) == held


def test_graphs_go_with_the_buffers_that_they_use(opens: Opens, monkeypatch: pytest.MonkeyPatch) -> None:
    """Buffers too large to be made for the largest size are made anew for each larger one."""
    monkeypatch.setattr(slot, "ROOM", 0)
    session, cuda, _ = opens(max_contexts=1)
    for n in (1, 2, 3):
        for _ in range(3):
            np.testing.assert_array_equal(session.infer({"x": rows(n)})["y"], right(rows(n)))
    assert session.memory.graphs_kept == len(cuda.graphs) == 1


def test_without_graphs_everything_runs_eagerly_and_gives_the_same(opens: Opens) -> None:
    session, cuda, _ = opens(graphs=0)
    for n in (4, 4, 4, 8, 9):
        np.testing.assert_array_equal(session.infer({"x": rows(n)})["y"], right(rows(n)))
    assert "launch" not in cuda.calls
    assert "capture" not in cuda.calls


def test_a_plan_that_cannot_be_captured_runs_without_graphs_and_says_so_once(opens: Opens) -> None:
    session, _, engine = opens()
    engine.refuses_capture = True
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for n in (4, 4, 4, 8, 8, 8):
            np.testing.assert_array_equal(session.infer({"x": rows(n)})["y"], right(rows(n)))
    assert ["without CUDA graphs" in str(one.message) for one in told] == [True]


def test_the_graphs_of_a_context_are_bounded_and_the_least_used_go(opens: Opens) -> None:
    session, cuda, _ = opens(graphs=3)
    for n in (1, 2, 3, 4, 5, 6, 7, 8):
        for _ in range(3):
            np.testing.assert_array_equal(session.infer({"x": rows(n)})["y"], right(rows(n)))
    assert session.memory.graphs_kept == len(cuda.graphs) == 3
    assert steps(cuda, lambda: session.infer({"x": rows(1)})) == ["launch"]
    assert steps(cuda, lambda: session.infer({"x": rows(8)})) == ["execute"]  # none has been idle for long enough
    for _ in range(3 * 8):
        session.infer({"x": rows(1)})
    assert "capture" in steps(cuda, lambda: session.infer({"x": rows(8)}))
    assert steps(cuda, lambda: session.infer({"x": rows(8)})) == ["launch"]
    assert steps(cuda, lambda: session.infer({"x": rows(1)})) == ["launch"]
    assert "capture" in steps(cuda, lambda: session.infer({"x": rows(2)}))  # 2 had made way for 8, and 3 does for 2
    assert session.memory.graphs_kept == len(cuda.graphs) == 3


def test_every_size_has_a_graph_before_any_has_one_at_the_callers_addresses(opens: Opens) -> None:
    """Eager runs of changing sizes are what TensorRT's memory grows by."""
    session, cuda, _ = opens(graphs=8, max_contexts=1)
    tensors = [OnGpu(rows(n)) for n in range(1, 9)]
    outs = [OnGpu(np.zeros((n, 4), np.float32)) for n in range(1, 9)]
    for _ in range(3):  # those of the first sizes come again, and get graphs of their own
        for x, out in zip(tensors[:3], outs, strict=False):
            session.infer({"x": x}, out=out)
    for _ in range(3):
        for n in range(1, 9):
            session.infer({"x": rows(n)})
    seen = [steps(cuda, lambda x=x: session.infer({"x": x}, out=OnGpu(np.zeros_like(x.array)))) for x in tensors]  # type: ignore[misc]
    assert all("execute" not in one and one.count("launch") == 1 for one in seen), seen
    assert session.memory.graphs_kept == 8


def test_callers_whose_addresses_and_sizes_are_ever_others_cost_no_captures_in_the_long_run(
    opens: Opens, clock: Clock
) -> None:
    session, cuda, _ = opens(graphs=12, max_contexts=1)
    session._rig.settles = False  # kernels that were replaced are another reason to capture
    rng = np.random.default_rng(5)
    tensors, outs = ({n: [OnGpu(np.zeros((n, 4), np.float32)) for _ in range(6)] for n in range(1, 9)} for _ in "io")

    def calls() -> list[str]:
        begun = len(cuda.calls)
        for _ in range(300):
            n = int(rng.integers(1, 9))
            x, out = rng.choice(6, size=2)
            session.infer({"x": tensors[n][x]}, out=outs[n][out])
            session.infer({"x": rows(n)})
            list(session.map({"x": rows(int(size))} for size in rng.integers(1, 9, size=3)))
        return cuda.calls[begun:]

    calls()
    assert session.memory.graphs_kept == 12
    assert set(calls()) == {"launch", "copy", "to_device", "to_host"}
    seen = []
    for minutes in (1.1, 1.1, 1.1, 1.1, 1.1, 1.1, 60, 60, 60, 40, 61, 59, 61):
        clock.now += minutes * 60
        seen.append(calls().count("capture"))
    assert seen == [1, 0, 1, 0, 0, 0, 1, 1, 1, 1, 1, 0, 1]  # after one minute, two, four and so on; every hour at last
    session._runs.trim()
    calls()
    assert "capture" not in calls()
    clock.now += 1.1 * 60
    assert calls().count("capture") == 1  # what was given up may come again as soon as at the beginning


def test_the_ring_that_was_used_last_is_used_first(opens: Opens, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slot, "ROOM", 0)  # buffers of just the size that is needed
    session, cuda, _ = opens()
    small, large = (session.map([{"x": rows(n)}] * 4) for n in (1, 8))
    next(small)
    next(large)
    list(small)
    list(large)
    held = sorted(len(memory) for memory in cuda.memory.values())
    for found in session.map({"x": rows(8)} for _ in range(4)):
        np.testing.assert_array_equal(found["y"], right(rows(8)))
    assert sorted(len(memory) for memory in cuda.memory.values()) == held


def test_graphs_of_open_sizes_are_captured_anew_once_kernels_may_have_been_replaced(opens: Opens, clock: Clock) -> None:
    session, cuda, _ = opens()
    for n in (3, 4):
        session.infer({"x": rows(n)})
        session.infer({"x": rows(n)})
    seen = []
    for _ in range(4):
        clock.now += 100
        seen.append((steps(cuda, lambda: session.infer({"x": rows(3)})).count("capture"),))
    assert seen == [(1,), (1,), (0,), (0,)]
    assert steps(cuda, lambda: session.infer({"x": rows(4)})) == ["launch"]  # a size with kernels of its own


def results_of(session: TensorRTSession, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Of an array on the stand-in's GPU; the result's memory is kept from being used again at once."""
    found = session.infer({"x": OnGpu(x)})["y"]
    kept.append(found)
    return array_at(found.address, found.shape)


kept: list[Any] = []


def test_addresses_that_come_again_are_used_in_place_and_others_by_way_of_buffers(opens: Opens) -> None:
    session, cuda, _ = opens()
    for seed in range(4):  # new memory each time
        x = rows(4, seed)
        seen = steps(cuda, lambda x=x: np.testing.assert_array_equal(results_of(session, x), right(x)))  # type: ignore[misc]
        if seed:
            assert seen[-3:] in (["copy", "launch", "copy"], ["capture", "execute", "copy"])
    x = rows(4, 9)
    out = OnGpu(np.zeros((4, 4), np.float32))
    seen = []
    for _ in range(4):
        seen.append(steps(cuda, lambda: session.infer({"x": OnGpu(x)}, out=out)))
        np.testing.assert_array_equal(out.array, right(x))
    assert seen[-1] == ["launch"]
    kept.clear()


def test_a_graph_of_addresses_is_never_used_for_others(opens: Opens) -> None:
    """Buffers that come, go and come again at other sizes and addresses."""
    session, _, _ = opens()
    rng = np.random.default_rng(3)
    pool = [np.zeros((n, 4), np.float32) for n in (1, 4, 4, 8, 3, 11)]
    for _ in range(300):
        x = pool[rng.integers(len(pool))]
        x[...] = rng.standard_normal(x.shape)
        np.testing.assert_array_equal(results_of(session, x), right(x))
        if len(kept) > 5:
            del kept[: rng.integers(5)]
    kept.clear()
    assert session.memory.graphs_kept <= 64


@pytest.mark.parametrize("count", [9, 16, 20, 33])
def test_a_batch_beyond_the_largest_is_run_in_parts(opens: Opens, count: int) -> None:
    session, _, _ = opens()
    x = rows(count)
    for _ in range(3):
        np.testing.assert_array_equal(session.infer({"x": x})["y"], right(x))
        np.testing.assert_array_equal(session.infer({"x": torch.from_numpy(x)})["y"].numpy(), right(x))
        np.testing.assert_array_equal(results_of(session, x), right(x))
    kept.clear()


def test_results_go_where_out_says(opens: Opens) -> None:
    session, _, _ = opens()
    x, out = rows(12), np.zeros((12, 4), np.float32)
    assert session.infer({"x": x}, out=out)["y"] is out
    np.testing.assert_array_equal(out, right(x))
    tensor = torch.zeros(12, 4)
    assert session.infer({"x": torch.from_numpy(x)}, out={"y": tensor})["y"] is tensor
    np.testing.assert_array_equal(tensor.numpy(), right(x))


@pytest.mark.parametrize(
    ("out", "why"),
    [
        (np.zeros((3, 4), np.float32), r"\[3, 4\]"),
        (np.zeros((4, 4), np.float64), "float64"),
        (np.zeros((4, 8), np.float32)[:, ::2], "not contiguous"),
        (torch.zeros(4, 4), "torch tensor"),
        ({"z": np.zeros((4, 4), np.float32)}, "they are y"),
        (3, "a int"),
        (np.broadcast_to(np.float32(0), (4, 4)), "not contiguous"),
    ],
)
def test_an_out_that_does_not_fit_is_refused(opens: Opens, out: Any, why: str) -> None:
    session, _, _ = opens()
    with pytest.raises(OutputError, match=why):
        session.infer({"x": rows(4)}, out=out)


def test_arrays_of_another_gpu_and_gaps_in_foreign_arrays_are_refused_with_the_spec(opens: Opens) -> None:
    session, _, _ = opens()

    class Elsewhere(OnGpu):
        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, 1

    with pytest.raises(InputError, match="cuda:1"):
        session.infer({"x": Elsewhere(rows(4))})
    session.infer({"x": OnGpu(rows(4))})  # the shape alone says nothing of the layout
    with pytest.raises(InputError, match="not contiguous") as caught:
        session.infer({"x": OnGpu(rows(8)[::2])})
    assert "x: float32 [B, 4]" in caught.value.do


def test_host_arrays_with_gaps_are_staged_as_they_are(opens: Opens) -> None:
    session, _, _ = opens()
    x = rows(8)
    np.testing.assert_array_equal(session.infer({"x": x[::2]})["y"], right(x[::2]))
    transposed = np.asfortranarray(x)
    np.testing.assert_array_equal(session.infer({"x": transposed})["y"], right(x))


@pytest.mark.parametrize("ahead", [0, 1, 2, 4])
def test_map_gives_what_infer_gives_in_order(opens: Opens, ahead: int) -> None:
    session, _, _ = opens()
    sizes = [4, 4, 8, 1, 20, 4, 8, 3, 8, 8, 4, 9]
    buffer = np.zeros((20, 4), np.float32)  # filled anew for each item, as a reader of frames may do

    def batches() -> Iterator[dict[str, Any]]:
        for seed, size in enumerate(sizes):
            buffer[:size] = rows(size, seed)
            yield {"x": buffer[:size]}

    for _ in range(3):
        found = [result["y"] for result in session.map(batches(), ahead=ahead)]
        for seed, (size, y) in enumerate(zip(sizes, found, strict=True)):
            np.testing.assert_array_equal(y, right(rows(size, seed)))


def test_map_takes_torch_and_arrays_of_the_gpu(opens: Opens) -> None:
    session, _, _ = opens()
    mixed: list[Any] = [torch.from_numpy(rows(4, 1)), OnGpu(rows(4, 2)), rows(4, 3)]
    first, second, third = (result["y"] for result in session.map({"x": x} for x in mixed))
    assert isinstance(first, torch.Tensor)
    np.testing.assert_array_equal(first.numpy(), right(rows(4, 1)))
    np.testing.assert_array_equal(array_at(second.address, second.shape), right(rows(4, 2)))
    np.testing.assert_array_equal(third, right(rows(4, 3)))


def test_map_refuses_in_turn_and_may_be_left_early(opens: Opens) -> None:
    session, _, _ = opens()
    results = session.map([{"x": rows(4)}, {"x": rows(4).astype(np.float64)}])
    np.testing.assert_array_equal(next(results)["y"], right(rows(4)))
    with pytest.raises(InputError, match="float64"):
        next(results)
    for _ in session.map({"x": rows(4)} for _ in range(9)):
        break
    np.testing.assert_array_equal(session.infer({"x": rows(4)})["y"], right(rows(4)))


def test_a_session_may_be_called_while_it_maps(opens: Opens) -> None:
    session, _, _ = opens(max_contexts=1)
    for result in session.map({"x": rows(4)} for _ in range(5)):
        np.testing.assert_array_equal(session.infer({"x": result["y"]})["y"], right(right(rows(4))))


def test_any_number_of_threads(opens: Opens) -> None:
    session, _, engine = opens(max_contexts=3)

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(60):
            x = rows(int(rng.integers(1, 21)), int(rng.integers(1000)))
            if rng.random() < 0.5:
                np.testing.assert_array_equal(session.infer({"x": x})["y"], right(x))
            else:
                found = session.infer({"x": OnGpu(x)})["y"]
                np.testing.assert_array_equal(array_at(found.address, found.shape), right(x))

    assert in_threads(work, 8) == []
    assert len(engine.contexts) <= 3 * 3  # a context for each of three profiles, on each of three lanes


def test_asyncio_keeps_its_loop_and_forgets_what_is_cancelled(opens: Opens) -> None:
    session, _, _ = opens()

    async def main() -> None:
        many = [session.ainfer({"x": rows(4, seed)}) for seed in range(20)]
        for seed, found in enumerate(await asyncio.gather(*many)):
            np.testing.assert_array_equal(found["y"], right(rows(4, seed)))
        task = asyncio.create_task(session.ainfer({"x": rows(8)}))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        on_gpu = (await session.ainfer({"x": OnGpu(rows(4))}))["y"]
        np.testing.assert_array_equal(array_at(on_gpu.address, on_gpu.shape), right(rows(4)))
        with pytest.raises(InputError):
            await session.ainfer({"x": rows(4).astype(np.float16)})

    asyncio.run(main())


def test_out_of_memory_runs_smaller_parts_and_says_so_once(opens: Opens) -> None:
    session, cuda, _ = opens(memory_limit=8.5)  # a context for 4 takes 4 MiB, one for 8 takes 8, the weights take 1
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for n in (8, 8, 8, 20):
            np.testing.assert_array_equal(session.infer({"x": rows(n)})["y"], right(rows(n)))
            assert session.memory.total <= 8.5
    assert ["at most 4 rows" in str(one.message) for one in told] == [True]
    assert "launch" in steps(cuda, lambda: session.infer({"x": rows(8)}))


def test_arrays_of_the_gpu_and_streams_of_batches_run_in_parts_too(opens: Opens) -> None:
    session, _, _ = opens(memory_limit=8.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for _ in range(3):
            np.testing.assert_array_equal(results_of(session, rows(8)), right(rows(8)))
        for result in session.map({"x": rows(8)} for _ in range(4)):
            np.testing.assert_array_equal(result["y"], right(rows(8)))
    kept.clear()


@pytest.mark.parametrize("limit", [9.5, 12.5, 13.5, 17.5])
def test_sizes_whose_contexts_do_not_fit_beside_each_other_run_in_turn(opens: Opens, limit: float) -> None:
    """However often, and though one of them cannot be cut."""
    session, _, _ = opens(memory_limit=limit)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for n in (8, 1, 8, 1, 4, 1, 8, 3) * 6:
            np.testing.assert_array_equal(session.infer({"x": rows(n)})["y"], right(rows(n)))
            assert session.memory.total <= limit


@pytest.mark.parametrize("sizes", [[8], [8, 4], [1, 8, 3]])
def test_where_one_context_has_room_callers_take_turns(
    opens: Opens, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory for one lane's contexts, and threads that meet: nobody is refused, and no batch is cut."""
    session, _, engine = opens(memory_limit=2 + sum(sizes if 3 not in sizes else [1, 8, 8]), max_contexts=3)
    execute = FakeContext.execute

    def slow(context: FakeContext, addresses: Any, stream: int) -> None:
        time.sleep(0.002)
        execute(context, addresses, stream)

    monkeypatch.setattr(FakeContext, "execute", slow)
    wrong: list[object] = []

    def work(seed: int) -> None:
        for turn in range(40):
            x = rows(sizes[(turn + seed) % len(sizes)], seed)
            try:
                given = OnGpu(x) if (turn + seed) % 2 else x
                found = session.infer({"x": given})["y"]
                values = found if isinstance(found, np.ndarray) else array_at(found.address, found.shape)
                wrong.extend([] if np.array_equal(values, right(x)) else [seed])
            except Exception as error:
                wrong.append(error)

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert in_threads(work, 6) == []
    assert wrong == []
    assert not any("parts of at most" in str(one.message) for one in told)
    session.close()
    assert engine.closed


def test_what_fits_in_no_part_is_an_error_that_names_the_limit(opens: Opens) -> None:
    with pytest.raises(GpuMemoryError, match="memory limit") as caught:
        opens(memory_limit=3)
    assert "memory_limit is 3 MiB" in caught.value.why


def test_what_others_do_not_need_is_given_up_first(opens: Opens) -> None:
    """Room for one context at a time: each size gets its own, and none is cut, until it has gone on for too long."""
    session, _, engine = opens(memory_limit=9.5)
    session.infer({"x": rows(8)})
    session.infer({"x": rows(4)})
    assert len(engine.contexts) >= 3
    assert session.memory.contexts_open == 1


def test_a_lost_gpu_is_told_at_every_later_call(opens: Opens) -> None:
    session, cuda, engine = opens()
    session.infer({"x": rows(4)})
    cuda.fault = True
    with pytest.raises(GpuFaultError, match="illegal memory access"):
        session.infer({"x": rows(4)})
    cuda.fault = False
    for call in (
        lambda: session.infer({"x": rows(4)}),
        lambda: session.infer({"x": OnGpu(rows(4))}),
        lambda: list(session.map([{"x": rows(4)}])),
    ):
        with pytest.raises(GpuFaultError, match="this session is lost") as caught:
            call()
    assert "illegal memory access" in caught.value.why
    cuda.fault = True
    held = (dict(cuda.memory), dict(cuda.pinned), set(cuda.handles))
    session.close()
    assert not engine.closed  # TensorRT ends the process where it frees what CUDA has lost
    assert not any(context.closed for context in engine.contexts)
    assert (cuda.memory, cuda.pinned, cuda.handles) == held
    with pytest.raises(InputError, match="closed"):
        session.infer({"x": rows(4)})


def test_a_fault_that_nobody_saw_before_the_end_leaves_all_as_it_is_too(opens: Opens) -> None:
    """A kernel of the caller's own failed, say, in the block that the session is open in: its error is to be told."""
    session, cuda, engine = opens()
    session.infer({"x": rows(4)})
    cuda.fault = True
    session.close()
    assert not engine.closed
    assert not any(context.closed for context in engine.contexts)


def test_a_plan_whose_first_context_faults_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made: list[FakeEngine] = []

    def faulty(engine: FakeEngine, profile: int, stream: int) -> FakeContext:
        made.append(engine)
        engine.cuda.fault = True
        raise GpuFaultError("CUDA: an illegal memory access was encountered")

    monkeypatch.setattr(FakeEngine, "create_context", faulty)
    with pytest.raises(GpuFaultError, match="illegal memory access"):
        fake_session(monkeypatch, tmp_path)
    assert [engine.closed for engine in made] == [False]


def test_kernels_that_cannot_be_serialized_keep_no_memory(opens: Opens, monkeypatch: pytest.MonkeyPatch) -> None:
    session, cuda, engine = opens()
    session.infer({"x": rows(4)})

    def fails() -> bytes:
        raise RuntimeError("bad allocation")  # as pybind11 has it

    monkeypatch.setattr(engine.kernels, "serialized", fails)
    session.close()
    assert engine.closed
    assert everything_is_free(cuda)


def test_kernels_are_kept_by_who_may_have_compiled_some(opens: Opens, monkeypatch: pytest.MonkeyPatch) -> None:
    session, _, engine = opens()
    engine.cache.held = b"kernels"
    session.infer({"x": rows(4)})
    session.close()
    assert session.kernels.load() == b"kernels"
    for infers, asked in ((False, 0), (True, 1)):  # in another process each
        monkeypatch.setattr(kernels, "SPARES", Spares())
        session, _, engine = opens()
        assert (session.kernels.state, engine.cache.held) == ("kept", b"kernels")
        cache = engine.cache
        if infers:
            session.infer({"x": rows(4)})
        session.close()
        assert (len(engine.contexts), cache.asked) == (int(infers), asked)


def test_a_session_that_does_what_one_before_did_has_its_kernels_and_keeps_none(opens: Opens, clock: Clock) -> None:
    """TensorRT for RTX keeps memory each time that a cache is filled, or serialized."""
    session, _, engine = opens()
    cache = engine.cache
    cache.held = b"kernels"

    def asked_by(*sizes: int) -> int:
        """How often a session that is called with these sizes serializes."""
        before = cache.asked
        for n in sizes:
            for _ in range(3):
                session.infer({"x": rows(n)})
        session.close()
        return cache.asked - before

    seen = [asked_by(4, 3)]
    later = [(0, (4, 3)), (0, (4, 3)), (0, (5,)), (0, (5,)), (4, (4,)), (1, (4,)), (200, (4,)), (1, (4,))]
    for seconds, sizes in later:
        clock.now += seconds
        session, _, engine = opens()
        assert engine.cache is cache
        seen.append(asked_by(*sizes))
    # where none were kept; a new size, and it again later: kernels are compiled in the background
    assert seen == [1, 0, 0, 1, 0, 1, 0, 1, 0]


def test_kernels_that_are_compiled_after_the_first_graph_was_captured_are_kept(
    opens: Opens, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    session, _, engine = opens()
    engine.cache.held = b"kernels"
    session.close()
    monkeypatch.setattr(kernels, "SPARES", Spares())  # another process, to which a size is new
    session, _, engine = opens()
    for _ in range(3):
        session.infer({"x": rows(3)})
    clock.now += 5
    engine.cache.held = b"kernels, and those of three rows"
    session.close()
    assert session.kernels.load() == b"kernels, and those of three rows"


def test_kernels_are_kept_once_in_a_while_at_most_while_a_session_runs(opens: Opens, clock: Clock) -> None:
    session, _, engine = opens()
    engine.cache.held = b"kernels"
    session.infer({"x": rows(8)})  # none were kept
    seen = []
    for n in range(1, 8):
        for _ in range(3):
            session.infer({"x": rows(n)})
        clock.now += 13
        seen.append(engine.cache.asked)
    assert seen == [2, 2, 2, 3, 3, 3, 4]


def test_graphs_that_are_captured_anew_are_no_reason_to_serialize_again_and_again(opens: Opens, clock: Clock) -> None:
    session, _, engine = opens()
    engine.cache.held = b"kernels"
    for _ in range(100):
        for _ in range(3):
            session.infer({"x": rows(4)})
        session._runs.trim()
        clock.now += 31
    assert engine.cache.asked == 12  # after pauses of 1, 2, 4, ... 2048 s, and where none were kept


def test_a_plan_that_could_not_be_run_keeps_no_kernels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """They would say that it ran here."""
    monkeypatch.setattr(FakeCache, "serialize", lambda self: b"of a context that was never made")

    def refused(*_: Any) -> Any:
        raise DeviceError("TensorRT refused")

    with monkeypatch.context() as patched:
        patched.setattr(FakeEngine, "create_context", refused)
        with pytest.raises(DeviceError, match="refused"):
            fake_session(monkeypatch, tmp_path)
    assert not list(tmp_path.rglob("*"))
    fake_session(monkeypatch, tmp_path)[0].close()
    assert [found.parent.name for found in tmp_path.rglob("*") if found.is_file()] == ["kernels"]


def test_a_context_whose_making_is_interrupted_goes_before_the_engine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made: list[FakeContext] = []
    closed: list[bool] = []
    create, close = FakeEngine.create_context, FakeEngine.close

    def created(engine: FakeEngine, profile: int, stream: int) -> FakeContext:
        made.append(create(engine, profile, stream))
        monkeypatch.setattr(engine.cuda, "synchronize", interrupted)
        return made[-1]

    def interrupted(stream: int) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    def closing(engine: FakeEngine) -> None:
        closed.extend(context.closed for context in made)
        close(engine)

    monkeypatch.setattr(FakeEngine, "create_context", created)
    with pytest.MonkeyPatch.context() as other:
        other.setattr(FakeEngine, "close", closing)
        with pytest.raises(KeyboardInterrupt):
            fake_session(monkeypatch, tmp_path)
    assert closed == [True]


def test_kernels_are_left_to_sessions_of_the_same_gpu_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    caches = []
    for number in (0, 1, 0, 1):
        session, _, engine = fake_session(monkeypatch, tmp_path, device=number)
        caches.append(engine.cache)
        session.close()
    assert caches[0] is caches[2]
    assert caches[1] is caches[3]
    assert caches[0] is not caches[1]


def everything_is_free(cuda: FakeCuda) -> bool:
    return not (cuda.memory or cuda.pinned or cuda.handles or cuda.graphs)


def test_closing_frees_everything(opens: Opens) -> None:
    session, cuda, engine = opens()
    for n in (1, 4, 4, 8, 20):
        session.infer({"x": rows(n)})
        session.infer({"x": OnGpu(rows(n))})
    list(session.map({"x": rows(4)} for _ in range(5)))
    assert session.memory.total > 0
    session.close()
    session.close()
    gc.collect()
    assert everything_is_free(cuda)
    assert engine.closed
    assert (session.memory.contexts, session.memory.buffers, session.memory.graphs_kept) == (0, 0, 0)


def test_a_session_that_is_let_go_of_frees_everything_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    session, cuda, engine = fake_session(monkeypatch, tmp_path)
    session.infer({"x": rows(4)})
    list(session.map({"x": rows(4)} for _ in range(5)))
    gc.disable()
    try:
        del session
        assert everything_is_free(cuda)
        assert engine.closed
    finally:
        gc.enable()


def test_closing_while_others_call_and_map(opens: Opens) -> None:
    session, cuda, _ = opens()
    ends: list[str] = []

    def work() -> None:
        try:
            while True:
                session.infer({"x": rows(4)})
        except InputError as error:
            ends.append(error.what)

    mapped = session.map({"x": rows(4)} for _ in range(9))
    next(mapped)
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    session.close()
    for thread in threads:
        thread.join(10)
    assert ends == ["this session is closed"] * 4
    with pytest.raises(InputError, match="closed"):
        list(mapped)
    gc.collect()
    assert everything_is_free(cuda)


def in_child(session: TensorRTSession, told: Any) -> None:
    try:
        session.infer({"x": rows(4)})
        told.put("it ran")
    except ForkedError as error:
        told.put(str(error))
    session.close()


def test_a_forked_child_is_refused_and_the_parent_goes_on(opens: Opens) -> None:
    session, _, _ = opens()
    session.infer({"x": rows(4)})
    context = multiprocessing.get_context("fork")
    told = context.Queue()
    child = context.Process(target=in_child, args=(session, told))
    child.start()
    message = told.get(timeout=30)
    child.join(30)
    assert child.exitcode == 0
    assert "before the process forked" in message
    assert "spawn" in message
    np.testing.assert_array_equal(session.infer({"x": rows(4)})["y"], right(rows(4)))


def test_the_kernels_that_were_kept_spare_the_first_context(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from trtship.session.kernel_store import KernelStore

    session, _, engine = fake_session(monkeypatch, tmp_path)
    assert len(engine.contexts) == 1  # whether the plan runs here is told at once
    session.close()
    monkeypatch.setattr(KernelStore, "load", lambda self: setattr(self, "state", "kept") or b"")
    session, _, engine = fake_session(monkeypatch, tmp_path)
    assert engine.contexts == []
    session.close()


def test_poison_reaches_what_the_graph_writes(opens: Opens) -> None:
    session, _, engine = opens()
    x = rows(4)
    for _ in range(3):
        session.infer({"x": x})
    session.poison = True
    np.testing.assert_array_equal(session.infer({"x": x})["y"], right(x))
    monkey = engine.contexts[-1]
    monkey.execute = lambda addresses, stream: None  # type: ignore[method-assign]
    session._runs.trim()
    engine.create_context = lambda profile, stream: monkey  # type: ignore[method-assign]
    for _ in range(4):
        assert np.isnan(session.infer({"x": x})["y"]).all()
    assert os.getpid()


def test_a_fault_while_memory_is_freed_does_not_keep_others_waiting(opens: Opens) -> None:
    session, cuda, _ = opens(max_contexts=2)
    lanes = [session._lanes.take() for _ in range(2)]
    for lane in lanes:
        lane.context(session._plans.piece(((4, 4),)))
        session._lanes.give(lane)
    cuda.fault = True
    with pytest.raises(GpuFaultError):
        session._runs.trim()
    assert len(session._lanes.idle()) == 2
    cuda.fault = False
    for lane in lanes:
        session._lanes.give(lane)


def test_it_is_not_called_within_somebodys_capture(opens: Opens, monkeypatch: pytest.MonkeyPatch) -> None:
    session, cuda, _ = opens()
    kind = type(session._call({"x": OnGpu(rows(4))})[0].kind)
    monkeypatch.setattr(kind, "stream", lambda self, array, index: 77)
    session.infer({"x": OnGpu(rows(4))})
    cuda.capturing[77] = []
    for _ in range(2):
        with pytest.raises(InputError, match="while a CUDA graph is captured"):
            session.infer({"x": OnGpu(rows(4))})
    assert not cuda.capturing.pop(77)


def test_buffers_are_as_small_as_need_be_where_memory_is_short(opens: Opens) -> None:
    """The profile's largest batch would need more than there is."""
    session, cuda, _ = opens()
    cuda.room = cuda.used + 2 * 4 * 4 + 8
    np.testing.assert_array_equal(session.infer({"x": rows(1)})["y"], right(rows(1)))


def test_layers_are_timed_without_the_graphs_that_were_kept(opens: Opens, monkeypatch: pytest.MonkeyPatch) -> None:
    session, cuda, _ = opens()
    for _ in range(4):
        session.infer({"x": rows(4)})
    monkeypatch.setattr(FakeContext, "record_layers", lambda self: SimpleNamespace(medians={}), raising=False)
    seen = steps(cuda, lambda: session.layer_times({"x": rows(4)}, runs=5))
    assert "launch" not in seen
    assert seen.count("execute") == 7
    assert session.memory.graphs_kept == 0


class SecondGpu(FakeCuda):
    """GPU 1 of two, where GPU 0 is the thread's current one; notes which was current when something was done."""

    def __init__(self) -> None:
        super().__init__(1)
        self.current, self.seen = 0, list[tuple[str, int]]()

    @contextmanager
    def selected(self) -> Iterator[None]:
        before = self.switch()
        try:
            yield
        finally:
            self.back(before)

    def switch(self) -> int:
        before, self.current = self.current, self.device
        return before

    def back(self, before: int) -> None:
        self.current = before

    def note(self, what: str) -> None:
        self.seen.append((what, self.current))

    def _handle(self) -> int:
        self.note("handle")
        return super()._handle()

    create_stream = create_event = _handle

    def allocate(self, size: int) -> int:
        self.note("memory")
        return super().allocate(size)

    def launch(self, graph: int, stream: int) -> None:
        self.note("launch")
        super().launch(graph, stream)

    def free(self, address: int) -> None:
        self.note("free")
        super().free(address)


def test_all_that_it_makes_is_on_its_own_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cuda = SecondGpu()
    engine = FakeEngine(cuda)
    family: Any = FakeFamily(engine)
    create, load = engine.create_context, family.load

    def created(*arguments: Any) -> Any:
        cuda.note("context")
        return create(*arguments)

    def loaded(*arguments: Any, **options: Any) -> Any:
        cuda.note("engine")
        return load(*arguments, **options)

    monkeypatch.setattr(engine, "create_context", created)
    monkeypatch.setattr(family, "load", loaded)
    monkeypatch.setattr(tensorrt, "Cuda", lambda device: cuda)
    monkeypatch.setenv("TRTSHIP_CACHE", str(tmp_path))
    with TensorRTSession(b"plan", family, device=1, gpu=GPU) as session:
        for count in (4, 4, 4, 8, 3):
            session.infer({"x": rows(count)})
        list(session.map({"x": rows(4)} for _ in range(4)))
        session.warm_up([8])
    assert {what for what, _ in cuda.seen} == {"engine", "handle", "context", "memory", "launch", "free"}
    assert {found for _, found in cuda.seen} == {1}
    assert cuda.current == 0


@pytest.mark.parametrize("index", [-1, 1])
def test_a_gpu_that_is_not_there_is_refused(index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found: tuple[Gpu, ...] = (GPU,)
    monkeypatch.setattr(device, "list_gpus", lambda: found)
    assert device.gpu_at(0) is GPU
    with pytest.raises(DeviceError, match=f"no GPU {index} here"):
        device.gpu_at(index)


def test_bfloat16_of_the_host_is_run_as_it_is(opens: Opens, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in adds nothing: bytes in, bytes out."""

    def moved(context: FakeContext, addresses: Any, stream: int) -> None:
        count = 2 * int(np.prod(context.shape))
        context.engine.cuda.copy(addresses["y"], addresses["x"], count, stream)

    monkeypatch.setattr(FakeContext, "execute", moved)
    monkeypatch.setattr(FakeEngine, "inputs", (msgspec.structs.replace(FakeEngine.inputs[0], dtype="bfloat16"),))
    monkeypatch.setattr(FakeEngine, "outputs", (msgspec.structs.replace(FakeEngine.outputs[0], dtype="bfloat16"),))
    session, _, _ = opens()
    x = torch.from_numpy(rows(4)).to(torch.bfloat16)
    for _ in range(3):
        found = session.infer({"x": x})["y"]
        assert found.dtype is torch.bfloat16
        assert torch.equal(found, x)
