"""What a session orders by streams and events, over a stand-in for CUDA that does everything as late as it may
(`async_gpu`). Results are wrong, or a hazard is noted, where something is not waited for."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from async_gpu import AsyncCuda, AsyncEngine, Tensor, Tensors
from fake_gpu import OnGpu, array_at, fake_session

from in_threads import in_threads
from trtship.session import arrays, graphs, rig, shelf, slot
from trtship.session.tensorrt import TensorRTSession

SEEDS = range(40)
CALLS = 25


def right(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return 2 * x + 1


def rows(rng: random.Random, most: int = 10) -> np.ndarray[Any, Any]:
    return np.random.default_rng(rng.getrandbits(32)).standard_normal((rng.randint(1, most), 4)).astype(np.float32)


class Caller:
    """One thread's calls; what it found wrong is raised."""

    def __init__(self, session: TensorRTSession, tensors: Tensors, seed: int) -> None:
        self.session, self.tensors, self.rng = session, tensors, random.Random(seed)
        self.cuda = tensors.cuda
        self.streams = [self.cuda.create_stream() for _ in range(2)]
        self.pinned = self.cuda.allocate_pinned(10 * 4 * 4)
        self.lasting: dict[tuple[int, tuple[int, ...]], tuple[Tensor, Tensor]] = {}
        self.pending: list[tuple[int, np.ndarray[Any, Any], np.ndarray[Any, Any], Tensor | None]] = []
        """What was computed on which stream, nobody looked yet: inputs, results, and whose memory may be another
        stream's once it is let go of."""

    def on_the_host(self) -> None:
        x = rows(self.rng)
        np.testing.assert_array_equal(self.session.infer({"x": x})["y"], right(x))

    def on_the_gpu(self) -> None:
        """Several of one shape: in memory that comes again, or that is let go of at once. Nothing is waited for in
        between."""
        like, lasting = rows(self.rng), self.rng.random() < 0.5
        for _ in range(self.rng.randint(1, 7)):
            if lasting or self.tensors.keeps:
                self.tensors.current.stream = self.rng.choice(self.streams)
            stream, x = self.tensors.current.stream, like * self.rng.random()
            if lasting:
                given, out = self.places(x.shape)
                self.tensors.write(given, x)
                y = self.session.infer({"x": given}, out=out)["y"]
                assert y is out
            else:
                y = self.session.infer({"x": self.tensors.holding(x)})["y"]
            self.pending.append((stream, x, self.tensors.fetch(y), y if self.tensors.keeps else None))
            del y

    def places(self, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """For inputs and outputs, on the current stream; always the same."""
        stream = self.tensors.current.stream
        if (stream, shape) not in self.lasting:
            self.lasting[stream, shape] = Tensor(self.tensors, shape, stream), Tensor(self.tensors, shape, stream)
        return self.lasting[stream, shape]

    def look(self) -> None:
        """At what was computed on the GPU since the last time."""
        for stream, x, y, _ in self.pending:
            self.cuda.synchronize(stream)
            np.testing.assert_array_equal(y, right(x))
        self.pending = []

    def batches(self, made: list[np.ndarray[Any, Any]]) -> Iterator[dict[str, Any]]:
        """Each in memory of its own, or all in one place in pinned memory."""
        in_place = self.rng.random() < 0.5
        for x in made:
            if in_place:
                pinned = array_at(self.pinned, x.shape)
                pinned[...] = x
            yield {"x": pinned if in_place else x}

    def in_a_stream_of_batches(self) -> None:
        made = [rows(self.rng) for _ in range(self.rng.choice((1, 2, 5, 9)))]
        results = self.session.map(self.batches(made), ahead=self.rng.choice((0, 1, 2)))
        for x, found in zip(made, results, strict=False):
            np.testing.assert_array_equal(found["y"], right(x))
            if self.rng.random() < 0.2:
                results.close()  # type: ignore[attr-defined]
                break

    def memory_is_wanted_elsewhere(self) -> None:
        self.session._runs.trim()

    def warmed(self) -> None:
        self.session.warm_up(self.rng.sample(range(1, 9), 2))

    def work(self) -> None:
        ways: list[Callable[[], None]] = [self.on_the_host, self.on_the_gpu, self.in_a_stream_of_batches]
        seldom: list[Callable[[], None]] = [self.memory_is_wanted_elsewhere, self.warmed]
        for _ in range(CALLS):
            self.tensors.current.stream = self.rng.choice(self.streams)
            self.rng.choice(ways if self.rng.random() < 0.95 else seldom)()
            if self.rng.random() < 0.3:
                self.look()
        self.look()


@pytest.mark.parametrize("seed", SEEDS)
def test_everything_waits_for_what_it_needs(seed: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rng = random.Random(seed)
    monkeypatch.setattr(slot, "ROOM", rng.choice((0, 200, 256 << 20)))
    monkeypatch.setattr(rig, "SETTLE", rng.choice(((10, 60), (0.0005, 0.001), (0.01, 0.02))))
    monkeypatch.setattr(graphs, "IDLE", rng.choice((8, 256)))
    monkeypatch.setattr(shelf, "PATIENCE", rng.choice((1, 8)))
    cuda = AsyncCuda(seed)
    tensors = Tensors(cuda, keeps=rng.random() < 0.3)
    monkeypatch.setitem(arrays._known, Tensor, tensors)
    options: dict[str, Any] = {"max_contexts": rng.choice((1, 2, 3)), "graphs": rng.choice((0, 1, 2, 4, 8, 64))}
    if rng.random() < 0.3:
        options["memory_limit"] = rng.choice((12, 26, 40))
    session, _, _ = fake_session(monkeypatch, tmp_path, cuda=cuda, engine_of=AsyncEngine, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of smaller parts
        raised = in_threads(lambda one: Caller(session, tensors, 100 * seed + one).work(), rng.choice((1, 2, 4)))
    session.close()
    assert raised == []
    assert cuda.hazards == []
    assert not cuda.graphs


@pytest.mark.parametrize("seed", range(20))
def test_results_that_are_read_are_not_written_to_before(
    seed: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Our own memory, of two sessions, each of which has a stream of its own for it."""
    cuda, rng = AsyncCuda(seed), random.Random(seed)
    first, _, _ = fake_session(monkeypatch, tmp_path, cuda=cuda, engine_of=AsyncEngine)
    second, _, _ = fake_session(monkeypatch, tmp_path, cuda=cuda, engine_of=AsyncEngine)
    with first, second:
        kept = []  # freeing would wait for everything
        for _ in range(8):
            x, other = OnGpu(rows(rng, 4)), OnGpu(rows(rng, 4))
            other.array = np.resize(other.array, x.array.shape)
            one = first.infer({"x": x})["y"]
            again = first.infer({"x": one})["y"]
            assert second.infer({"x": other}, out=one)["y"] is one
            kept.append((x.array, other.array, one, again))
        for given, later, one, again in kept:
            np.testing.assert_array_equal(again.get(), right(right(given)))
            np.testing.assert_array_equal(one.get(), right(later))


def test_a_call_whose_inputs_must_be_held_is_enqueued_behind_another(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The host waits for the last but one, so that the GPU always has something to do."""
    cuda = AsyncCuda(0)
    cuda.idle = True
    session, _, _ = fake_session(monkeypatch, tmp_path, cuda=cuda, engine_of=AsyncEngine)
    x = OnGpu(rows(random.Random(0)))
    with session:
        kept = [session.infer({"x": x})["y"] for _ in range(4)]  # freeing would wait for everything
        for _ in range(5):
            kept.append(session.infer({"x": x})["y"])
            done = [np.array_equal(array_at(one.address, one.shape), right(x.array)) for one in kept]
            assert done == [True] * (len(kept) - 2) + [False] * 2
        for one in kept:
            np.testing.assert_array_equal(one.get(), right(x.array))
