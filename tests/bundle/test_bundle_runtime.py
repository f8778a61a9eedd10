"""Which runtime a bundle gets where there is a GPU, played on a machine that has none: the driver's answer and the
session are stood in for, all between them is real, the rebuilt plan too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import numpy as np
import pytest

import trtship
from deployed import copy_of
from trtship.bundle import Bundle, runtime
from trtship.bundle.bundle import write_manifest
from trtship.errors import DependencyError, DeviceError, InputError, SpecError
from trtship.family import installed_families
from trtship.gpu import Gpu
from trtship.session.base import Session

Deployed = Callable[[str, str], Path]
GPU = Gpu(index=0, name="Stand-in", compute_capability="8.9", memory_mib=2**14, driver="580.1", uuid="GPU-0")
pytestmark = pytest.mark.skipif(not installed_families(), reason="needs TensorRT")


class Plan(Session):
    """Takes the place of the sessions that run plans: remembers those it was given, refuses as many as `refused` says,
    and gives what the colours give."""

    refused = 0
    wrong = False
    given: list[bytes]

    options: ClassVar[dict[str, Any]] = {}

    def __init__(self, plan: bytes, family: Any, *, inputs: Any, outputs: Any, **options: Any) -> None:
        self.options.update(options)
        type(self).given.append(plan)
        if self.refused:
            type(self).refused -= 1
            raise DeviceError("cannot load this plan here", why="it is for another GPU")
        self.inputs, self.outputs, self.runtime = inputs, outputs, f"{family} on a stand-in"

    def _run(self, feeds: Any) -> Any:
        return {"logits": np.maximum(feeds["input"], 0).mean((2, 3)) * (1.1 if self.wrong else 1)}


@pytest.fixture
def stand_in(deployed: Deployed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[Plan]:
    deployed("colours", "fp16")  # before there is a GPU
    fresh = type("Fresh", (Plan,), {"given": [], "options": {}})
    monkeypatch.setenv("TRTSHIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(runtime, "list_gpus", lambda: (GPU,))
    monkeypatch.setattr(runtime, "Cuda", lambda device: None)
    monkeypatch.setattr(runtime, "TensorRTSession", fresh)
    return fresh


def test_the_bundles_own_plan_comes_first(deployed: Deployed, stand_in: type[Plan], tmp_path: Path) -> None:
    folder = deployed("colours", "fp16")
    with trtship.load(folder) as session:
        assert session.runtime.endswith("on a stand-in: the bundle's own plan")
    assert stand_in.given == [(folder / "model.plan").read_bytes()]
    assert not (tmp_path / "cache").exists()


def test_contexts_memory_and_graphs_are_the_sessions(deployed: Deployed, stand_in: type[Plan]) -> None:
    folder = deployed("colours", "fp16")
    with trtship.load(folder):
        assert {"max_contexts": 2, "memory_limit": None, "graphs": 64}.items() <= stand_in.options.items()
    with trtship.load(folder, max_contexts=4, memory_limit=900):
        assert {"max_contexts": 4, "memory_limit": 900, "graphs": 64}.items() <= stand_in.options.items()


@pytest.mark.parametrize(
    "wrong", [{"max_contexts": 0}, {"max_contexts": "two"}, {"graphs": -1}, {"graphs": 1.5}, {"memory_limit": 0.0}]
)
def test_wrong_ways_to_run_a_plan_are_the_users_mistake(deployed: Deployed, wrong: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match="no way to run a plan"):
        trtship.load(deployed("colours", "fp16"), **wrong)


def test_a_device_that_is_no_number_is_told(deployed: Deployed) -> None:
    device: Any = "0"
    with pytest.raises(SpecError, match="'0' is no GPU"):
        trtship.load(deployed("colours", "fp16"), device=device)


@pytest.mark.parametrize("batches", [8, ["8"]])
def test_what_are_no_batch_sizes_cannot_be_warmed(deployed: Deployed, batches: Any) -> None:
    with trtship.load(deployed("colours", "fp16")) as session, pytest.raises(InputError, match="takes batch sizes"):
        session.warm_up(batches)


def test_a_plan_that_does_not_fit_is_rebuilt_once_and_remembered(
    deployed: Deployed, stand_in: type[Plan], tmp_path: Path
) -> None:
    folder = deployed("colours", "fp16")
    own = (folder / "model.plan").read_bytes()
    for _ in range(2):
        stand_in.refused = 1
        with trtship.load(folder) as session:
            assert "a plan rebuilt here, since" in session.runtime
            assert "it is for another GPU" in session.runtime
    (entry,) = (tmp_path / "cache").rglob("rebuild/*/model.plan")
    assert stand_in.given == [own, entry.read_bytes()] * 2
    assert (folder / "model.plan").read_bytes() == own


def test_a_plan_of_another_version_is_not_even_tried(deployed: Deployed, stand_in: type[Plan], tmp_path: Path) -> None:
    folder = copy_of(deployed("colours", "fp16"), tmp_path)
    write_manifest(folder, msgspec.structs.replace(Bundle.open(folder).manifest, family_version="0.1"))
    with trtship.load(folder) as session:
        assert "it was built with" in session.runtime
        assert "0.1" in session.runtime
    (entry,) = (tmp_path / "cache").rglob("rebuild/*/model.plan")
    assert stand_in.given == [entry.read_bytes()]


def test_without_a_rebuild_a_plan_that_does_not_fit_is_an_error(deployed: Deployed, stand_in: type[Plan]) -> None:
    folder = deployed("colours", "fp16")
    stand_in.refused = 1
    with pytest.raises(DeviceError, match="does not fit this machine") as caught:
        trtship.load(folder, rebuild=False)
    assert "rebuild=True" in caught.value.do


def test_verify_tries_the_bundles_own_plan_alone(deployed: Deployed, stand_in: type[Plan], tmp_path: Path) -> None:
    folder = copy_of(deployed("colours", "fp16"), tmp_path)
    own = (folder / "model.plan").read_bytes()
    stand_in.refused = 1
    found = {v.subject: v for v in trtship.verify_bundle(folder) if v.gate == "rel_l2"}
    assert found["plan"].state == "not run"
    assert "it is for another GPU" in found["plan"].reason
    assert stand_in.given == [own]


def test_a_plan_with_wrong_outputs_fails_its_gate(deployed: Deployed, stand_in: type[Plan], tmp_path: Path) -> None:
    folder = copy_of(deployed("colours", "fp16"), tmp_path)
    assert {v.state for v in trtship.verify_bundle(folder) if v.subject == "plan"} == {"passed", "not run"}
    stand_in.wrong = True
    found = {v.subject: v for v in trtship.verify_bundle(folder) if v.gate == "rel_l2"}
    assert found["plan"].state == "failed"
    assert found["plan"].runtime.endswith("on a stand-in")


def test_where_nothing_on_the_gpu_works_onnxruntime_runs_and_says_why(
    deployed: Deployed, stand_in: type[Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_build(*_: Any, **__: Any) -> Any:
        raise DependencyError("no TensorRT that builds", why="broken")

    folder = deployed("colours", "fp16")
    stand_in.refused = 1
    monkeypatch.setattr(runtime, "plan_apart", no_build)
    with trtship.load(folder) as session:
        assert session.runtime.startswith("onnxruntime")
        assert "could not be rebuilt" in session.runtime
        assert "no TensorRT that builds" in session.runtime
    stand_in.refused = 1
    with pytest.raises(DeviceError, match="could not be rebuilt"):
        trtship.load(folder, runtime="tensorrt")


def test_where_cuda_does_not_work_nothing_is_rebuilt(
    deployed: Deployed, stand_in: type[Plan], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(device: int) -> None:
        raise DeviceError("CUDA: driver version is insufficient")

    monkeypatch.setattr(runtime, "Cuda", broken)
    with trtship.load(deployed("colours", "fp16")) as session:
        assert "CUDA: driver version is insufficient" in session.runtime
    assert stand_in.given == []
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("chosen", ["auto", "tensorrt"])
@pytest.mark.parametrize("device", [1, -1])
def test_a_gpu_that_is_not_there_is_never_replaced_by_the_cpu(
    deployed: Deployed, stand_in: type[Plan], chosen: Any, device: int
) -> None:
    with pytest.raises(DeviceError, match=f"there is no GPU {device} here"):
        trtship.load(deployed("colours", "fp16"), runtime=chosen, device=device)
    assert stand_in.given == []
