"""What callers do with a session, rightly and wrongly: names, sizes, places to write to, any number of kinds."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from fake_gpu import OnGpu, Opens

from in_threads import in_threads
from trtship.errors import GpuMemoryError, InputError, OutputError
from trtship.session.base import CALLS, Session
from trtship.session.runs import Runs
from trtship.spec import ShapeRange, TensorSpec


class Doubling(Session):
    """y = 2 x on the host, for images whose height is dynamic; `sizes` are those that were run."""

    runtime = "numpy"
    inputs = (TensorSpec(name="x", shape=("B", 3, "H")),)
    outputs = (TensorSpec(name="y", shape=("B", 3, "H")), TensorSpec(name="z", shape=("B", 3, "H")))

    def __init__(self) -> None:
        self.ranges = {"B": ShapeRange(min=2, opt=3, max=4), "H": ShapeRange(min=8, opt=16, max=32)}
        self.sizes: list[tuple[int, ...]] = []

    def _run(self, feeds: Any) -> dict[str, Any]:
        self.sizes.append(tuple(feeds["x"].shape))
        return {"y": 2 * feeds["x"], "z": 3 * feeds["x"]}


@contextmanager
def threads_that_change_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def test_more_kinds_of_calls_than_are_remembered_from_any_number_of_threads() -> None:
    session = Doubling()
    session.ranges = {}

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(1500):
            x = np.ones((int(rng.integers(1, 4 * CALLS)), 3, 1), np.float32)
            assert session.infer({"x": x})["y"].shape == x.shape

    with threads_that_change_often():
        assert in_threads(work, 8) == []
    assert len(session._calls) <= CALLS


@pytest.mark.parametrize("batches", [[2, 4], (2, 4), np.array([2, 4]), range(2, 5, 2), {2: "", 4: ""}])
def test_warm_up_takes_any_sizes_that_can_be_listed(batches: Any) -> None:
    for given in (batches, iter(batches)):
        session = Doubling()
        session.warm_up(given)
        assert session.sizes == [(2, 3, 16), (4, 3, 16)]


def test_warm_up_runs_what_is_optimized_for_unless_told() -> None:
    session = Doubling()
    session.warm_up()
    assert session.sizes == [(3, 3, 16)]
    session.warm_up([])
    assert session.sizes == [(3, 3, 16)]


@pytest.mark.parametrize("batches", [0, 3, [0], [-1], ["3"], [2.0], [None], "3"])
def test_what_are_no_batch_sizes_cannot_be_warmed(batches: Any) -> None:
    with pytest.raises(InputError, match="takes batch sizes"):
        Doubling().warm_up(batches)


def test_a_size_that_is_not_taken_cannot_be_warmed() -> None:
    with pytest.raises(InputError, match=r"\[1, 3, 16\]") as caught:
        Doubling().warm_up([1])
    assert caught.value.why == "B is 1, outside 2:3:4"


@pytest.mark.parametrize(
    "feeds", [np.ones((2, 3, 8), np.float32), torch.ones((2, 3, 8)), [np.ones((2, 3, 8), np.float32)], None, "x", 3]
)
def test_feeds_that_are_no_mapping_are_refused_with_the_spec(feeds: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InputError, match="the feeds are a") as caught:
            Doubling().infer(feeds)
    assert "float32 [B, 3, H]" in caught.value.do


def test_what_is_no_stream_of_batches_is_told() -> None:
    with pytest.raises(InputError, match="map takes batches, and this is a NoneType"):
        list(Doubling().map(None))  # type: ignore[arg-type]


def outs(y: np.ndarray[Any, Any], z: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    return {"y": y, "z": z}


def test_results_are_not_written_over_an_input_or_each_other() -> None:
    session, memory = Doubling(), np.ones((12, 3, 8), np.float32)
    x, apart, over = memory[:4], memory[4:8], memory[2:6]
    for out in (outs(over, np.ones_like(x)), outs(np.ones_like(x), over), outs(x, apart), outs(apart, apart)):
        with pytest.raises(OutputError, match="over an input, or over another output"):
            session.infer({"x": x}, out=out)
    np.testing.assert_array_equal(memory, 1)
    session.infer({"x": x}, out=outs(apart, memory[8:]))
    np.testing.assert_array_equal(memory[4:], np.repeat([2, 3], 4).repeat(24).reshape(8, 3, 8))


PLACES: list[Callable[[Any], Any]] = [lambda a: a, torch.from_numpy, OnGpu]


@pytest.mark.parametrize("as_given", PLACES, ids=["numpy", "torch", "on the GPU"])
@pytest.mark.parametrize("rows", [4, 8, 21], ids=["a profile's", "the largest", "in parts"])
def test_a_plan_does_not_write_over_what_it_reads(opens: Opens, as_given: Callable[[Any], Any], rows: int) -> None:
    session, _, _ = opens()
    memory = np.arange(8 * rows, dtype=np.float32).reshape(2 * rows, 4)
    before = memory.copy()
    x = memory[rows // 2 : rows // 2 + rows]
    for begin in (0, 1, rows // 2, rows // 2 + rows - 1):
        if begin + rows <= len(memory):
            with pytest.raises(OutputError, match="over an input"):
                session.infer({"x": as_given(x)}, out=as_given(memory[begin : begin + rows]))
    np.testing.assert_array_equal(memory, before)
    for _ in range(3):
        session.infer({"x": as_given(memory[:rows])}, out=as_given(memory[rows:]))
        np.testing.assert_array_equal(memory[rows:], 2 * before[:rows] + 1)


@pytest.mark.parametrize("asks", ["infer", "the shapes of out="])
def test_parts_that_become_smaller_meanwhile_do_no_harm(
    opens: Opens, monkeypatch: pytest.MonkeyPatch, asks: str
) -> None:
    """Memory runs out under another thread's call of the same kind just after this one's shapes were asked for."""
    session, _, engine = opens()
    engine.cache.held = b"kernels"
    session.infer({"x": np.ones((4, 4), np.float32)})
    session.close()
    session, _, _ = opens()  # which knows no shapes: kernels were kept, so that nothing is tried
    learn, x = Runs._learn_on, np.ones((7, 4), np.float32)

    def then_another(lane: Any, plan: Any) -> None:
        learn(lane, plan)
        monkeypatch.setattr(Runs, "_learn_on", staticmethod(learn))
        call, _ = session._call({"x": OnGpu(x)})
        session._runs._smaller(call, GpuMemoryError("there is no room"))

    monkeypatch.setattr(Runs, "_learn_on", staticmethod(then_another))
    out = OnGpu(np.zeros_like(x)) if asks != "infer" else None
    with pytest.warns(RuntimeWarning, match="at most 4 rows"):
        found = session.infer({"x": OnGpu(x)}, out=out)["y"]
    assert found is out if out else found.shape == x.shape
    if out:
        np.testing.assert_array_equal(out.array, 3)
