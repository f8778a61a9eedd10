"""A plan at one size, over stand-ins for CUDA and TensorRT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_gpu import FEATURES, GPU, FakeContext, FakeCuda, FakeEngine, FakeFamily, array_at

from trtship.errors import DeviceError, GpuFaultError
from trtship.session import bound
from trtship.session.bound import BoundPlan


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[FakeCuda, FakeEngine]:
    cuda = FakeCuda()
    monkeypatch.setattr(bound, "Cuda", lambda device: cuda)
    monkeypatch.setattr(bound, "gpu_at", lambda device: GPU)
    monkeypatch.setenv("TRTSHIP_CACHE", str(tmp_path))
    return cuda, FakeEngine(cuda)


@pytest.mark.parametrize(("rows", "profile", "settled"), [(4, 1, True), (8, 2, True), (5, 0, False)])
def test_it_runs_on_the_callers_memory_in_the_narrowest_profile(
    fakes: tuple[FakeCuda, FakeEngine], rows: int, profile: int, settled: bool
) -> None:
    cuda, engine = fakes
    family: Any = FakeFamily(engine)
    plan = BoundPlan(b"plan", family, {"x": (rows, FEATURES)})
    assert plan.output_shapes == {"y": (rows, FEATURES)}
    assert (engine.contexts[0].profile, plan.is_settled) == (profile, settled)
    addresses = {name: cuda.allocate(rows * FEATURES * 4) for name in ("x", "y")}
    x = np.random.default_rng(0).standard_normal((rows, FEATURES)).astype(np.float32)
    array_at(addresses["x"], x.shape)[...] = x
    stream = cuda.create_stream()
    plan.enqueue(addresses, stream)
    np.testing.assert_array_equal(array_at(addresses["y"], x.shape), 2 * x + 1)
    graph = cuda.capture(lambda: plan.enqueue(addresses, stream), stream)
    array_at(addresses["x"], x.shape)[...] = -x
    cuda.launch(graph, stream)
    np.testing.assert_array_equal(array_at(addresses["y"], x.shape), 1 - 2 * x)
    plan.close()
    assert engine.closed
    assert len(engine.contexts) == 1


def test_what_cuda_has_lost_is_left_as_it_is(fakes: tuple[FakeCuda, FakeEngine]) -> None:
    cuda, engine = fakes
    family: Any = FakeFamily(engine)
    plan = BoundPlan(b"plan", family, {"x": (4, FEATURES)})
    cuda.fault = True
    with pytest.raises(GpuFaultError):
        plan.close()
    assert not engine.closed
    assert not engine.contexts[0].closed


@pytest.mark.parametrize("fails", ["create_context", "set_shapes", "narrowest"])
def test_a_plan_that_cannot_be_bound_is_closed(
    fakes: tuple[FakeCuda, FakeEngine], fails: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda, engine = fakes
    owner: Any = {"create_context": FakeEngine, "set_shapes": FakeContext, "narrowest": bound}[fails]

    def refused(*_: Any) -> Any:
        raise DeviceError("TensorRT refused")

    monkeypatch.setattr(owner, fails, refused)
    family: Any = FakeFamily(engine)
    with pytest.raises(DeviceError, match="refused"):
        BoundPlan(b"plan", family, {"x": (4, FEATURES)})
    assert engine.closed
    assert all(context.closed for context in engine.contexts)
    assert not cuda.handles
