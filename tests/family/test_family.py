"""The adapter, on the TensorRT that is installed; and its use of names, against what NVIDIA publishes."""

from __future__ import annotations

import ast
import json
import os
import sys
import threading
from contextlib import suppress
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from trtship import engine as engine_room
from trtship import family as family_room
from trtship.errors import BuildError, DependencyError, DeviceError, SpecError
from trtship.family import FAMILIES, choose_family, installed_families, logger
from trtship.family import family as family_code
from trtship.family.logger import recording
from trtship.family.tf32 import VARIABLE, environment, environment_for
from trtship.gpu import list_gpus

PUBLISHED = json.loads((Path(__file__).parent / "published_api.json").read_text())
RTX_ONLY = {name for name, releases in PUBLISHED["names"].items() if not releases}
needs_rtx = pytest.mark.skipif("tensorrt_rtx" not in installed_families(), reason="needs tensorrt_rtx")
no_gpu = pytest.mark.skipif(bool(list_gpus()), reason="this machine has a GPU")

OWNERS = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "config": "IBuilderConfig",
    "profile": "IOptimizationProfile",
    "parser": "OnnxParser",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "_engine": "ICudaEngine",
    "_context": "IExecutionContext",
    "context": "IExecutionContext",
    "inspector": "EngineInspector",
    "settings": "IRuntimeConfig",
    "_cache": "IRuntimeCache",
    "timing_cache": "ITimingCache",
}
"""What our code calls a TensorRT object -> its class."""


def names_used() -> set[str]:
    """`Class` and `Class.attribute` for every attribute of a TensorRT object that the code mentions."""
    found: set[str] = set()
    rooms = [Path(room.__file__ or "").parent for room in (family_room, engine_room)]
    for file in [file for room in rooms for file in room.glob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute):
                parts = ast.unparse(node).removeprefix("self.").split(".")
                if parts[0] == "module" and len(parts) > 1 and parts[1][0].isupper():
                    found.add(".".join(p for p in parts[1:] if p != "__init__"))
                elif len(parts) == 2 and parts[0] in OWNERS:
                    found.add(f"{OWNERS[parts[0]]}.{parts[1]}")
    return found


def test_every_name_that_is_used_is_in_the_published_list() -> None:
    used = names_used()
    assert len(used) > 40
    assert used - PUBLISHED["names"].keys() == set()


def test_every_release_publishes_every_name_but_those_of_rtx_alone() -> None:
    assert PUBLISHED["releases"] == ["v10.0.1", "v10.16", "v11.0", "v11.1"]
    for name, releases in PUBLISHED["names"].items():
        assert releases in (PUBLISHED["releases"], []), name
    assert {name.split(".")[-1] for name in RTX_ONLY} == {
        "ComputeCapability", "CURRENT", "num_compute_capabilities", "set_compute_capability",
        "create_runtime_cache", "create_runtime_config", "deserialize", "reset", "serialize",
        "set_execution_context_allocation_strategy", "set_runtime_cache",
        "dynamic_shapes_kernel_specialization_strategy",
    }  # fmt: skip


@needs_rtx
def test_the_installed_tensorrt_has_every_name() -> None:
    import tensorrt_rtx

    for name in PUBLISHED["names"]:
        found: Any = tensorrt_rtx
        for part in name.split("."):
            assert hasattr(found, part), name
            found = getattr(found, part)


@needs_rtx
def test_the_family_that_is_here_is_chosen_and_said() -> None:
    family, why = choose_family()
    assert (family.name, family.version) == next(iter(installed_families().items()))
    assert str(family) in why
    assert "as asked" in choose_family(family.name)[1]


def test_an_unknown_family_is_refused_with_the_known_ones() -> None:
    with pytest.raises(SpecError, match="tensorrt, tensorrt_rtx"):
        choose_family("tensorflow")


@pytest.mark.skipif("tensorrt" in installed_families(), reason="full TensorRT is installed")
def test_a_family_that_is_not_installed_names_its_remedy() -> None:
    with pytest.raises(DependencyError, match="no usable tensorrt") as caught:
        choose_family("tensorrt")
    assert FAMILIES["tensorrt"][1] in caught.value.do


def test_no_family_at_all_names_the_one_that_installs_from_pypi(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(family_code, "installed_families", dict)
    with pytest.raises(DependencyError, match="no usable TensorRT") as caught:
        choose_family()
    assert "trtship[rtx]" in caught.value.do


def put_full_tensorrt(monkeypatch: pytest.MonkeyPatch, **attributes: Any) -> None:
    """A module that stands in for a TensorRT that no machine of ours can install."""
    made = ModuleType("tensorrt")
    made.__dict__.update(__version__="10.9.0", **attributes)
    monkeypatch.setitem(sys.modules, "tensorrt", made)
    monkeypatch.setitem(logger._loggers, "tensorrt", SimpleNamespace(sinks=()))


@needs_rtx
def test_full_tensorrt_is_preferred_and_one_that_does_not_import_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    both = {"tensorrt": "10.9.0", **installed_families()}
    monkeypatch.setattr(family_code, "installed_families", lambda: both)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    family, why = choose_family()
    assert family.name == "tensorrt_rtx"
    assert "tensorrt:" in why
    put_full_tensorrt(monkeypatch)
    family, why = choose_family()
    assert (family.name, family.is_rtx, family.compute_capabilities()) == ("tensorrt", False, {})
    assert not family.builds_without_gpu()


def test_a_builder_that_is_null_is_a_missing_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """pybind11 raises TypeError for a factory that returns null, as TensorRT's does without a driver."""

    def null(_: Any) -> Any:
        raise TypeError("pybind11::init(): factory function returned nullptr")

    put_full_tensorrt(monkeypatch, Builder=null, Runtime=null)
    family = family_code.Family("tensorrt")
    with pytest.raises(BuildError, match="could not create a builder") as caught:
        family.create_builder()
    assert "GPU" in caught.value.why
    with pytest.raises(DeviceError, match="cannot load this plan"):
        family.load(b"plan")


@needs_rtx
def test_targets_are_named_by_compute_capability() -> None:
    found = choose_family("tensorrt_rtx")[0].compute_capabilities()
    assert {"7.5", "8.6", "8.9", "12.0", "current"} <= found.keys()
    assert all(
        member.name == ("CURRENT" if name == "current" else "SM" + name.replace(".", ""))
        for name, member in found.items()
    )


@needs_rtx
@no_gpu
def test_a_plan_that_is_none_or_has_no_gpu_is_refused_with_tensorrts_words() -> None:
    with pytest.raises(DeviceError, match="cannot load this plan here") as caught:
        choose_family("tensorrt_rtx")[0].load(b"not a plan")
    assert caught.value.why


@needs_rtx
def test_a_recording_hears_what_is_said_while_it_lasts() -> None:
    family = choose_family("tensorrt_rtx")[0]
    severity = family.module.ILogger.Severity
    with recording(family.module) as outer:
        family.logger.log(severity.WARNING, "one")
        with recording(family.module) as inner:
            family.logger.log(severity.ERROR, "two")
            family.logger.log(severity.VERBOSE, "too much")
        family.logger.log(severity.INFO, "three")
    family.logger.log(severity.ERROR, "after")
    assert outer == ["[W] one", "[E] two", "[I] three"]
    assert inner == ["[E] two"]


def test_only_rtx_needs_the_variable_and_only_for_fp32() -> None:
    assert environment_for("tensorrt_rtx", tf32=False) == {VARIABLE: "0"}
    assert environment_for("tensorrt_rtx", tf32=True) == environment_for("tensorrt", tf32=False) == {}


@pytest.mark.parametrize("before", [None, "1", "0"])
@pytest.mark.parametrize("wanted", [{}, {VARIABLE: "0"}])
def test_the_environment_is_as_wanted_and_then_as_it_was(
    before: str | None, wanted: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    if before is not None:
        monkeypatch.setenv(VARIABLE, before)
    with suppress(RuntimeError), environment(wanted):
        assert os.environ.get(VARIABLE) == wanted.get(VARIABLE)
        raise RuntimeError
    assert os.environ.get(VARIABLE) == before


def test_threads_never_see_anothers_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    seen: list[tuple[str | None, str | None]] = []
    together = threading.Barrier(4)

    def work(wanted: dict[str, str]) -> None:
        together.wait()
        for _ in range(200):
            with environment(wanted):
                seen.append((wanted.get(VARIABLE), os.environ.get(VARIABLE)))

    threads = [threading.Thread(target=work, args=(w,)) for w in ({}, {VARIABLE: "0"}) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 800
    assert all(wanted == found for wanted, found in seen)
    assert VARIABLE not in os.environ


def test_progress_never_leaves_0_to_1_and_nested_phases_share_their_parents_step() -> None:
    steps: list[tuple[float, str]] = []
    fake = SimpleNamespace(IProgressMonitor=type("Base", (), {}))
    monitor = family_code.progress_monitor(fake, lambda done, phase: steps.append((done, phase)) or True)
    monitor.phase_start("all", None, 4)
    assert monitor.step_complete("all", 0)
    monitor.phase_start("part", "all", 2)
    monitor.step_complete("part", 0)
    monitor.phase_finish("part")
    monitor.step_complete("all", 3)
    monitor.step_complete("unheard of", 7)
    assert steps[:5] == [(0.0, "all"), (0.25, "all"), (0.25, "part"), (0.375, "part"), (1.0, "all")]
    assert all(0 <= done <= 1 for done, _ in steps)


def test_threads_that_record_lose_no_lines_and_leave_no_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter changes threads as often as it can."""
    log = SimpleNamespace(sinks=())
    monkeypatch.setitem(logger._loggers, "tensorrt", log)
    module, lost = SimpleNamespace(__name__="tensorrt"), list[str]()
    before = sys.getswitchinterval()

    def work(name: str) -> None:
        for _ in range(2000):
            with logger.recording(module) as lines:
                for sink in log.sinks:
                    sink.append(name)
                if name not in lines:
                    lost.append(name)

    threads = [threading.Thread(target=work, args=(str(index),)) for index in range(4)]
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert (log.sinks, lost) == ((), [])
