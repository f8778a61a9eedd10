"""Which runtime a bundle gets where there is a GPU, played on a machine that has none: the driver's answer and the
session are stood in for, all between them is real, the rebuilt plan too."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import numpy as np
import pytest

import trtship
from deployed import copy_of
from trtship import engine
from trtship.bundle import Bundle, runtime
from trtship.bundle.bundle import write_manifest
from trtship.cli.console import Console
from trtship.errors import DependencyError, DeviceError, GpuFaultError, GpuMemoryError, InputError, SpecError
from trtship.family import installed_families
from trtship.gpu import Gpu
from trtship.progress import SILENT, Progress
from trtship.session.base import Session
from trtship.session.onnxruntime import OnnxRuntimeSession

Deployed = Callable[[str, str], Path]
GPU = Gpu(index=0, name="Stand-in", compute_capability="8.9", memory_mib=2**14, driver="580.1", uuid="GPU-0")
pytestmark = [
    pytest.mark.skipif(not installed_families(), reason="needs TensorRT"),
    pytest.mark.filterwarnings("ignore:.*(building one from|runs through onnxruntime):RuntimeWarning"),
]


class Plan(Session):
    """Takes the place of the sessions that run plans: remembers those it was given, refuses as many as `refused` says,
    and gives what the colours give."""

    refused = 0
    error: DeviceError = DeviceError("cannot load this plan here", why="it is for another GPU")
    wrong = False
    given: list[bytes]

    options: ClassVar[dict[str, Any]] = {}

    def __init__(self, plan: bytes, family: Any, *, inputs: Any, outputs: Any, **options: Any) -> None:
        self.options.update(options)
        type(self).given.append(plan)
        if self.refused:
            type(self).refused -= 1
            raise self.error
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
    monkeypatch.setattr(engine, "plan_apart", no_build)
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


FAULT = GpuFaultError("CUDA: an illegal memory access was encountered", why="CUDA error 700")
FULL = GpuMemoryError("the session's memory limit is reached", why="40.0 more are needed for engine")


class Heard(Progress):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def nothing_else(deployed: Deployed, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan that is built, and a graph that is run in the plan's place, fail the test."""

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("another way was tried")

    deployed("colours", "fp16")
    monkeypatch.setattr(engine, "plan_apart", never)
    monkeypatch.setattr(runtime, "OnnxRuntimeSession", never)


@pytest.mark.parametrize("chosen", ["auto", "tensorrt"])
@pytest.mark.parametrize("rebuild", [True, False])
def test_a_gpu_that_works_no_more_is_told_as_it_is_and_nothing_else_is_tried(
    deployed: Deployed, stand_in: type[Plan], nothing_else: None, chosen: Any, rebuild: bool
) -> None:
    stand_in.refused, stand_in.error = 1, FAULT
    with pytest.raises(GpuFaultError) as caught:
        trtship.load(deployed("colours", "fp16"), runtime=chosen, rebuild=rebuild)
    assert caught.value is FAULT


@pytest.mark.parametrize("chosen", ["auto", "tensorrt"])
def test_a_gpu_that_works_no_more_is_told_when_cuda_starts_or_a_plan_is_rebuilt(
    deployed: Deployed, stand_in: type[Plan], monkeypatch: pytest.MonkeyPatch, chosen: Any
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise FAULT

    stand_in.refused = 1
    with monkeypatch.context() as patched:
        patched.setattr(engine, "plan_apart", broken)
        with pytest.raises(GpuFaultError), pytest.warns(RuntimeWarning, match="building one"):
            trtship.load(deployed("colours", "fp16"), runtime=chosen)
    monkeypatch.setattr(runtime, "Cuda", broken)
    with pytest.raises(GpuFaultError):
        trtship.load(deployed("colours", "fp16"), runtime=chosen)


@pytest.mark.parametrize("chosen", ["auto", "tensorrt"])
@pytest.mark.parametrize("rebuild", [True, False])
def test_a_plan_that_memory_has_no_room_for_is_an_error_that_says_what_to_do(
    deployed: Deployed, stand_in: type[Plan], nothing_else: None, chosen: Any, rebuild: bool
) -> None:
    folder = deployed("colours", "fp16")
    stand_in.refused, stand_in.error = 2, FULL
    with pytest.raises(GpuMemoryError, match="GPU 0 has too little memory for the plan") as caught:
        trtship.load(folder, runtime=chosen, rebuild=rebuild, memory_limit=10)
    assert str(folder) in caught.value.what
    assert caught.value.why == f"{FULL.what}: {FULL.why}"
    assert "raise memory_limit (10 MiB)" in caught.value.do
    assert "runtime='onnxruntime'" in caught.value.do
    with pytest.raises(GpuMemoryError) as caught:
        trtship.load(folder, runtime=chosen, rebuild=rebuild)
    assert "memory_limit" not in caught.value.do


def test_a_gpu_that_is_full_when_cuda_starts_is_not_replaced_by_the_cpu(
    deployed: Deployed, stand_in: type[Plan], nothing_else: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(device: int) -> None:
        raise GpuMemoryError("CUDA: out of memory")

    monkeypatch.setattr(runtime, "Cuda", full)
    with pytest.raises(GpuMemoryError, match="too little memory"):
        trtship.load(deployed("colours", "fp16"))


def test_a_rebuild_is_told_once_with_why_and_how_to_forbid_it(deployed: Deployed, stand_in: type[Plan]) -> None:
    folder = deployed("colours", "fp16")
    stand_in.refused = 1
    with pytest.warns(RuntimeWarning) as told:
        trtship.load(folder).close()
    (text,) = [str(one.message) for one in told]
    for part in (str(folder), "it is for another GPU", "minutes", "rebuild=False", "fp16/model.onnx"):
        assert part in text
    stand_in.refused = 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trtship.load(folder).close()  # it was kept


def test_who_listens_to_notes_gets_no_warnings(
    deployed: Deployed, stand_in: type[Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = Heard()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stand_in.refused = 1
        trtship.load(deployed("colours", "fp16"), progress=heard).close()
        monkeypatch.setattr(runtime, "installed_families", dict)
        trtship.load(deployed("colours", "fp16"), progress=heard).close()
    rebuilt, fallen = heard.notes
    assert "building one from" in rebuilt
    assert "runs through onnxruntime, on the CPU: there is an NVIDIA GPU, but no TensorRT" in fallen


@pytest.mark.parametrize("quiet", [True, False])
def test_the_command_line_says_it_in_notes_or_not_at_all(quiet: bool) -> None:
    progress = Console(quiet=quiet).progress
    assert progress is not SILENT


def test_the_cpu_in_place_of_a_gpu_is_a_warning(
    deployed: Deployed, stand_in: type[Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "installed_families", dict)
    with pytest.warns(RuntimeWarning, match=r"onnxruntime, on the CPU: .*no TensorRT: pip install"):
        trtship.load(deployed("colours", "fp16")).close()


class Graph(OnnxRuntimeSession):
    """Says that it is on a GPU, and remembers where it was to run."""

    asked: ClassVar[list[dict[str, Any]]] = []

    def __init__(self, graph: Any, **options: Any) -> None:
        self.asked.append(options)
        super().__init__(graph)
        self.device = "cuda"


def test_onnxruntime_runs_on_the_gpu_that_was_named_within_the_memory_limit(
    deployed: Deployed, stand_in: type[Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Graph, "asked", [])
    monkeypatch.setattr(runtime, "OnnxRuntimeSession", Graph)
    monkeypatch.setattr(runtime, "list_gpus", lambda: (GPU, GPU))
    folder = deployed("colours", "fp16")
    trtship.load(folder, runtime="onnxruntime", device=1).close()
    trtship.load(folder, runtime="onnxruntime", memory_limit=900).close()
    monkeypatch.setattr(runtime, "installed_families", dict)
    with pytest.warns(RuntimeWarning, match="on the CUDA"):
        trtship.load(folder, device=1, memory_limit=900).close()
    assert [{key: value for key, value in asked.items() if key != "name"} for asked in Graph.asked] == [
        {"providers": "cuda", "device": 1, "memory_limit": None},
        {"providers": "auto", "device": 0, "memory_limit": 900},
        {"providers": "cuda", "device": 1, "memory_limit": 900},
    ]


def test_a_gpu_that_was_named_is_not_replaced_by_onnxruntimes_cpu(
    deployed: Deployed, stand_in: type[Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "list_gpus", lambda: (GPU, GPU))
    with pytest.raises(DeviceError, match="onnxruntime cannot use CUDA"):
        trtship.load(deployed("colours", "fp16"), runtime="onnxruntime", device=1)
    with monkeypatch.context() as without:
        without.setattr(runtime, "installed_families", dict)
        with pytest.raises(DeviceError, match="onnxruntime cannot use CUDA"):
            trtship.load(deployed("colours", "fp16"), device=1)
    with trtship.load(deployed("colours", "fp16"), runtime="onnxruntime") as session:
        assert "CPU: as asked" in session.runtime


@pytest.mark.parametrize("chosen", ["auto", "onnxruntime", "tensorrt"])
@pytest.mark.parametrize("gpus", [(), (GPU,)])
@pytest.mark.parametrize("family", ["foo", "TensorRT", "", 3])
def test_a_family_that_does_not_exist_is_the_users_mistake_everywhere(
    deployed: Deployed, monkeypatch: pytest.MonkeyPatch, chosen: Any, gpus: Any, family: Any
) -> None:
    folder = deployed("colours", "fp16")
    monkeypatch.setattr(runtime, "list_gpus", lambda: gpus)
    with pytest.raises(SpecError, match="unknown TensorRT family") as caught:
        trtship.load(folder, runtime=chosen, family=family)
    assert "tensorrt, tensorrt_rtx" in caught.value.why
    with pytest.raises(SpecError, match="unknown TensorRT family"):
        runtime.open_session(Bundle.open(folder), runtime=chosen, family=family)


@pytest.mark.parametrize("chosen", ["auto", "onnxruntime"])
def test_a_gpu_that_was_named_is_missed_where_there_is_none(
    deployed: Deployed, monkeypatch: pytest.MonkeyPatch, chosen: Any
) -> None:
    folder = deployed("colours", "fp16")
    monkeypatch.setattr(runtime, "list_gpus", lambda: ())
    with pytest.raises(DeviceError, match="there is no GPU 1 here"):
        trtship.load(folder, runtime=chosen, device=1)


@pytest.mark.parametrize("chosen", ["auto", "tensorrt", "onnxruntime"])
@pytest.mark.parametrize("device", [1, -1])
def test_a_gpu_that_is_not_there_is_never_replaced_by_the_cpu(
    deployed: Deployed, stand_in: type[Plan], chosen: Any, device: int
) -> None:
    with pytest.raises(DeviceError, match=f"there is no GPU {device} here"):
        trtship.load(deployed("colours", "fp16"), runtime=chosen, device=device)
    assert stand_in.given == []
