"""More sizes than graphs: batches are rounded up to sizes that have one."""

from __future__ import annotations

import ctypes
import warnings
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from fake_gpu import FakeContext, OnGpu, Opened, Opens, array_at
from hypothesis import given
from hypothesis import strategies as st

from clock import Clock
from in_threads import in_threads
from trtship.errors import GpuMemoryError
from trtship.session import slot
from trtship.session.buckets import SHARE, buckets
from trtship.session.graphs import Graph, Use
from trtship.session.piece import Piece
from trtship.session.shelf import PIECES, Shelf
from trtship.session.tensorrt import TensorRTSession
from trtship.spec import ShapeRange
from trtship.verify.compare import compare
from trtship.verify.reference import Reference
from trtship.verify.verdict import Bound

TOP = 100


@given(st.integers(1, 50), st.integers(0, 5000), st.integers(0, 200), st.integers(0, 4))
def test_every_batch_is_a_bucket_or_little_less_than_one(low: int, more: int, graphs: int, beside: int) -> None:
    found = buckets(ShapeRange(min=low, opt=low, max=low + more), graphs, beside=beside)
    if not found:
        return
    assert (found[0], found[-1]) == (low, low + more)
    assert list(found) == sorted(set(found))
    assert len(found) + beside <= SHARE * graphs
    for size in range(low, low + more + 1):
        bucket = next(one for one in found if one >= size)
        assert bucket - size <= size // 4


@given(st.integers(1, 50), st.integers(0, 5000), st.integers(0, 200), st.integers(0, 40))
def test_more_graphs_never_round_further(low: int, more: int, graphs: int, added: int) -> None:
    def furthest(graphs: int) -> float:
        """By which a batch is rounded up, as a part of itself; infinity where none is rounded."""
        found = buckets(limits, graphs)
        return max((next - 1 - one) / (one + 1) for one, next in pairwise(found)) if found else float("inf")

    limits = ShapeRange(min=low, opt=low, max=low + more)
    if more >= graphs + added:
        assert furthest(graphs + added) <= furthest(graphs)


def test_batches_are_rounded_up_as_little_as_the_graphs_allow() -> None:
    limits = ShapeRange(min=1, opt=8, max=24)
    assert buckets(limits, 20) == (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 18, 21, 24)  # 15 of 20
    assert buckets(limits, 20, beside=3) == (1, 2, 3, 4, 5, 7, 9, 11, 14, 17, 21, 24)  # by a sixth
    assert buckets(limits, 14) == (1, 2, 3, 5, 7, 10, 13, 17, 22, 24)  # by a quarter
    assert buckets(limits, 12) == ()


def test_where_each_size_can_have_its_graph_there_are_none() -> None:
    assert buckets(ShapeRange(min=1, opt=8, max=64), 64) == ()
    assert buckets(ShapeRange(min=1, opt=8, max=65), 64) != ()
    assert buckets(ShapeRange(min=1, opt=8, max=65), 0) == ()


@pytest.fixture(name="opens")
def opens_a_large_range(opens: Opens) -> Opens:
    def opened(**options: Any) -> Opened:
        session, cuda, engine = opens(**{"top": TOP, "max_contexts": 1, **options})
        session._rig.settles = False  # kernels that were replaced are another reason to capture
        return session, cuda, engine

    return opened


def right(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return 2 * x + 1


def call_every_way(session: TensorRTSession, rng: np.random.Generator, turns: int, top: int = TOP + 20) -> None:
    """With arrays of the host, in streams, and on the GPU at addresses that are ever others; each result is held
    against what is right."""
    for _ in range(turns):
        x, other = (rng.standard_normal((int(rng.integers(1, top)), 4)).astype(np.float32) for _ in "xy")
        np.testing.assert_array_equal(session.infer({"x": x})["y"], right(x))
        out = OnGpu(np.zeros_like(x))
        session.infer({"x": OnGpu(x)}, out=out)
        np.testing.assert_array_equal(out.array, right(x))
        for found, one in zip(session.map({"x": one} for one in (x, other)), (x, other), strict=True):
            np.testing.assert_array_equal(found["y"], right(one))


def sizes_run(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batch of each eager run, as they come."""
    seen: list[int] = []
    execute = FakeContext.execute

    def noting(context: FakeContext, addresses: Any, stream: int) -> None:
        if not context.engine.cuda.capturing:
            seen.append(context.shape[0])
        execute(context, addresses, stream)

    monkeypatch.setattr(FakeContext, "execute", noting)
    return seen


def test_in_the_long_run_no_size_runs_eagerly(opens: Opens, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eager runs of changing sizes are what TensorRT's memory grows by."""
    eager = sizes_run(monkeypatch)
    session, _, _ = opens(graphs=32)
    rng = np.random.default_rng(1)
    call_every_way(session, rng, 300)
    assert len(set(eager)) < 0.7 * TOP  # many sizes never ran as they are
    eager.clear()
    call_every_way(session, rng, 300)
    assert eager == []
    assert session.memory.graphs_kept == 32


def test_a_size_that_comes_again_has_a_graph_of_its_own(opens: Opens) -> None:
    """Twice it runs as its bucket."""
    session, cuda, _ = opens(graphs=32)
    x = np.ones((50, 4), np.float32)
    seen = []
    for _ in range(4):
        cuda.calls.clear()
        session.infer({"x": x})
        seen.append(cuda.calls[1:-1])  # but for the copies to and from the host
    captured = ["execute", "capture", "execute"]
    assert seen == [captured, ["launch"], captured, ["launch"]]
    shelf = session._lanes._free[0]._shelf
    kept = {piece.shapes["x"][0]: piece.is_bucket for piece, graphs in shelf.pieces.items() if graphs.kept}
    assert kept == {50: False, min(size for size in session._plans._sizes if size > 50): True}


@pytest.mark.parametrize("before", ["callers with addresses of their own", "memory that ran out"])
def test_a_size_that_has_come_to_be_usual_gets_a_graph_whatever_was_before(
    opens: Opens, monkeypatch: pytest.MonkeyPatch, clock: Clock, before: str
) -> None:
    session, _, _ = opens(graphs=24)
    eager = sizes_run(monkeypatch)

    def has_graph(n: int) -> bool:
        """Whether a size of which there are many runs as itself."""
        eager.clear()
        for _ in range(300):
            session.infer({"x": np.ones((n, 4), np.float32)})
        return n in eager

    usual = [n for n in range(60, 100) if n not in session._plans._sizes]
    assert [has_graph(n) for n in usual[:6]] == [True] * 6  # as many as there is room for beside the buckets
    if before == "memory that ran out":
        for n in usual[6:18]:  # one for another, ever more rarely
            clock.now += 3700
            has_graph(n)
        assert [has_graph(n) for n in usual[18:22]] != [True] * 4
        session._runs.trim()
        assert [has_graph(n) for n in usual[:6]] == [True] * 6
    else:
        x, outs = OnGpu(np.ones((8, 4), np.float32)), [OnGpu(np.ones((8, 4), np.float32)) for _ in range(60)]
        for out in outs:
            clock.now += 3700
            has_graph(usual[0])
            for _ in range(3):
                session.infer({"x": x}, out=out)
    assert has_graph(usual[30])


def test_where_no_graph_may_make_way_it_goes_on_as_its_bucket(opens: Opens) -> None:
    session, _, _ = opens(graphs=32)
    shelf = Shelf(session._rig)

    def piece(n: int) -> Piece:
        return Piece(session.inputs, ((n, 4),), profile=0, fixed=False)

    wanted = piece(50)
    wanted.bucket = piece(52)
    shelf.of(wanted).runs = 9
    for n in range(32):
        assert shelf.stand_in(wanted) is wanted
        graph = Graph(0, size=0, stale_at=float("inf"), again=0, used=0, use=Use.LANE)
        shelf.of(piece(n)).kept[n,] = graph
    assert shelf.stand_in(wanted) is wanted.bucket


def test_with_graphs_for_all_sizes_or_for_none_every_size_runs_as_it_is(
    opens: Opens, monkeypatch: pytest.MonkeyPatch
) -> None:
    eager = sizes_run(monkeypatch)
    for graphs in (TOP, 0):
        session, _, _ = opens(graphs=graphs)
        eager.clear()
        for n in range(1, TOP + 1):
            session.infer({"x": np.ones((n, 4), np.float32)})
        assert eager == list(range(1, TOP + 1))


def test_what_others_left_in_the_rows_beyond_is_in_no_result(opens: Opens) -> None:
    session, _, _ = opens(graphs=32)
    lasting = np.full((TOP, 4), np.nan, np.float32)
    for n in (50, 51, 52, 60, 90, 99):
        session.infer({"x": lasting})
        x = np.random.default_rng(n).standard_normal((n, 4)).astype(np.float32)
        np.testing.assert_array_equal(session.infer({"x": x})["y"], right(x))
        found = session.infer({"x": OnGpu(x)})["y"]
        np.testing.assert_array_equal(array_at(found.address, found.shape), right(x))


def test_rows_beyond_are_zero_at_first_and_not_what_memory_happened_to_hold(opens: Opens) -> None:
    """They are computed too: an index among them must be one."""
    session, _, _ = opens(graphs=32)
    session.infer({"x": np.ones((53, 4), np.float32)})
    buffers = session._lanes._free[0]._holdings._slots[0]
    np.testing.assert_array_equal(array_at(buffers.ins[0], (TOP, 4))[53:], 0)


def test_poison_reaches_a_rounded_batch(opens: Opens) -> None:
    session, cuda, _ = opens(graphs=32)
    session.poison = True
    filled: list[tuple[int, int]] = []
    fill = cuda.fill
    cuda.fill = lambda address, byte, size, stream: (filled.append((byte, size)), fill(address, byte, size, stream))[1]  # type: ignore[method-assign]
    x = np.ones((53, 4), np.float32)
    for array in (x, OnGpu(x)):  # eagerly, and by copies to the bucket's graph
        filled.clear()
        found = session.infer({"x": array})["y"]
        values = found if isinstance(found, np.ndarray) else array_at(found.address, found.shape)
        np.testing.assert_array_equal(values, right(x))
        poisoned = [size for byte, size in filled if byte == 0xFF]
        assert len(poisoned) == 1
        assert poisoned[0] > x.nbytes


def test_a_bucket_that_memory_has_no_room_for_is_not_rounded_up_to(opens: Opens) -> None:
    session, _, _ = opens(graphs=32, profiles=((1, 8, TOP), (50, 50, 50)))
    x = np.ones((46, 4), np.float32)
    session.infer({"x": x})
    bucket = session._plans.piece((x.shape,)).bucket
    assert bucket is not None
    assert bucket.shapes["x"] == (51, 4)
    call, _ = session._call({"x": np.ones((TOP, 4), np.float32)})
    session._plans.smaller(call, call.plan, GpuMemoryError("there is no room for it"))
    assert session._plans.most == 50
    for n in (46, 47):  # known before, and not; their bucket is 51
        assert session._plans.piece(((n, 4),)).bucket is None
    call_every_way(session, np.random.default_rng(3), 20)


USUAL = ((1, 8, TOP), (1, 1, 1), (8, 8, 8), (TOP, TOP, TOP))
"""As deploys have them."""


def test_rounding_up_takes_no_other_context(opens: Opens) -> None:
    """The largest size has a profile of its own, whose context would take as much memory again."""
    session, _, engine = opens(profiles=USUAL, memory_limit=150)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        for _ in range(5):
            x = np.ones((95, 4), np.float32)
            np.testing.assert_array_equal(session.infer({"x": x})["y"], right(x))
    assert sum(not context.closed for context in engine.contexts) <= 2  # and that for the usual sizes
    assert session._plans.most == TOP


def test_where_buffers_for_the_bucket_find_no_room_the_batch_runs_as_it_is(
    opens: Opens, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slot, "ROOM", 0)  # buffers are as large as what is run
    session, cuda, _ = opens(graphs=32)
    x = np.ones((94, 4), np.float32)
    cuda.room = cuda.used + 2 * x.nbytes
    for _ in range(6):
        np.testing.assert_array_equal(session.infer({"x": x})["y"], right(x))
    assert session._plans.most == TOP


def test_a_batch_whose_bucket_fits_no_profile_runs_as_it_is(opens: Opens) -> None:
    session, _, _ = opens(profiles=((1, 8, 20), (60, 80, TOP)))
    for n in (19, 20, 61, 65, 99):
        x = np.ones((n, 4), np.float32)
        np.testing.assert_array_equal(session.infer({"x": x})["y"], right(x))


@pytest.mark.parametrize("wrong", ["replays", "eager runs"])
@pytest.mark.parametrize("graphs", [64, 200])
def test_verify_sees_the_first_run_and_replays_of_sizes_that_are_rounded_up(
    opens: Opens, wrong: str, graphs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, cuda, _ = opens(profiles=USUAL, graphs=graphs)
    x = np.random.default_rng(0).standard_normal((7, 4)).astype(np.float32)
    reference = Reference(batch="B", sizes={"B": 7}, inputs={"x": x}, outputs={"y": right(x)})

    def verdict() -> str:
        bound = Bound(value=1e-6, source="the stand-in computes the same")
        return compare(session, reference, subject="plan", batches=(99,), bound=bound).state

    launch, execute = cuda.launch, FakeContext.execute

    def spoil() -> None:
        for address, memory in list(cuda.memory.items()):
            ctypes.memset(address, 0, len(memory))

    def spoiled_launch(graph: int, stream: int) -> None:
        launch(graph, stream)
        spoil()

    def spoiled_execute(context: FakeContext, addresses: Any, stream: int) -> None:
        execute(context, addresses, stream)
        if not cuda.capturing:
            spoil()

    if wrong == "replays":
        cuda.launch = spoiled_launch  # type: ignore[method-assign]
    else:
        monkeypatch.setattr(FakeContext, "execute", spoiled_execute)
    assert verdict() == "failed"
    cuda.launch = launch  # type: ignore[method-assign]
    monkeypatch.setattr(FakeContext, "execute", execute)
    assert verdict() == "passed"


@pytest.mark.parametrize("seldom", [4, 5, 8])
def test_sizes_that_many_share_or_that_have_kernels_of_their_own_are_remembered_among_many_others(
    opens: Opens, seldom: int
) -> None:
    session, cuda, _ = opens(top=1000, graphs=64)
    x = np.ones((seldom, 4), np.float32)
    for _ in range(2):
        session.infer({"x": x})
        for n in range(300, 300 + PIECES + 50):
            session.infer({"x": np.ones((n, 4), np.float32)})
    cuda.calls.clear()
    session.infer({"x": x})
    assert cuda.calls == ["to_device", "launch", "to_host"]


def test_any_number_of_threads(opens: Opens) -> None:
    session, _, _ = opens(graphs=32, max_contexts=3)
    assert in_threads(lambda seed: call_every_way(session, np.random.default_rng(seed), 60), 6) == []
