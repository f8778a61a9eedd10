"""Plans that are built in a process of their own, which may be gone at any moment."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from graphs import written
from trtship.engine import Plan, plan_apart, plan_from_onnx, sturdy_plan
from trtship.errors import BuildCrashed, Cancelled, GraphError, SpecError, TrtshipError, error_named
from trtship.family import Family, choose_family, installed_families
from trtship.progress import Progress
from trtship.spec import ShapeRange, TensorSpec

pytestmark = pytest.mark.skipif("tensorrt_rtx" not in installed_families(), reason="needs tensorrt_rtx")
W = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
PRODUCT = "(float[B, 4] x) => (float[B, 3] y) { y = MatMul(x, w) }"
X = (TensorSpec(name="x", shape=("B", 4)),)
PICTURES = (TensorSpec(name="input", shape=("B", 3, 56, 56)),)
RANGES = {"B": ShapeRange(min=1, opt=2, max=4)}


@pytest.fixture(scope="module")
def rtx() -> Family:
    return choose_family("tensorrt_rtx")[0]


def workers() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # a zombie is one
            if "trtship.engine.build_process" in process.cmdline():
                found.append(process)
    return found


class Act(Progress):
    def __init__(self, act: Callable[[], None]) -> None:
        self.act, self.seen = act, []  # type: ignore[var-annotated]

    def step(self, done: float, text: str = "") -> None:
        self.seen.append((done, text))
        self.act()


def kill_worker() -> None:
    for process in workers():
        process.send_signal(signal.SIGSEGV)


def interrupt() -> None:
    raise KeyboardInterrupt


def test_it_builds_the_plan_that_this_process_would(rtx: Family, tmp_path: Path) -> None:
    graph = written(tmp_path / "m.onnx", PRODUCT, w=W)
    steps = Act(lambda: None)
    apart = plan_apart(graph, family=rtx, inputs=X, ranges=RANGES, single=(1,), progress=steps)
    here = plan_from_onnx(graph, family=rtx, inputs=X, ranges=RANGES, single=(1,))
    assert apart.data == here.data
    assert apart.layers == here.layers
    assert apart.report.profiles == here.report.profiles == ({"x": ((1, 4), (2, 4), (4, 4))}, {"x": ((1, 4),) * 3})
    assert steps.seen[-1][0] == 1
    assert workers() == []


def test_a_crash_is_an_error_that_says_so(rtx: Family, exported: Callable[[str], Path]) -> None:
    with pytest.raises(BuildCrashed, match=r"crashed while it built") as caught:
        plan_apart(exported("swin"), family=rtx, inputs=PICTURES, ranges=RANGES, progress=Act(kill_worker))
    assert "SIGSEGV" in caught.value.why
    assert caught.value.exit_code == 3
    assert workers() == []


def test_ctrl_c_ends_the_process_and_is_heard(rtx: Family, exported: Callable[[str], Path]) -> None:
    with pytest.raises(Cancelled):
        plan_apart(exported("swin"), family=rtx, inputs=PICTURES, ranges=RANGES, progress=Act(interrupt))
    assert workers() == []


def test_an_error_of_ours_comes_through_whole(rtx: Family, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_text("just text")
    with pytest.raises(GraphError, match="cannot read m") as caught:
        plan_apart(tmp_path / "m.onnx", family=rtx, inputs=X, ranges=RANGES)
    assert caught.value.why
    with pytest.raises(SpecError, match="no range for the dynamic size B"):
        plan_apart(written(tmp_path / "n.onnx", PRODUCT, w=W), family=rtx, inputs=X, ranges={})


def test_a_class_that_is_not_in_the_tree_becomes_its_root() -> None:
    assert error_named("GraphError") is GraphError
    for name in ("ValueError", "ClassVar", "error_named", "no such"):
        assert error_named(name) is TrtshipError


class Builds:
    """Really builds, in a process that is ended on the way where a size in `bad` is among those wanted."""

    def __init__(self, graph: Path, family: Family, bad: set[int | None]) -> None:
        self.graph, self.family, self.bad, self.asked = graph, family, bad, []  # type: ignore[var-annotated]

    def __call__(self, sizes: tuple[int, ...]) -> Plan:
        self.asked.append(sizes)
        crash = self.bad & {*sizes, None}
        options: dict[str, Any] = {"progress": Act(kill_worker)} if crash else {}
        return plan_apart(self.graph, family=self.family, inputs=PICTURES, ranges=RANGES, single=sizes, **options)


def test_the_profile_that_tensorrt_crashes_over_is_left_out_and_said(
    rtx: Family, exported: Callable[[str], Path]
) -> None:
    build = Builds(exported("swin"), rtx, {1})
    plan = sturdy_plan(build, single=(1, 2, 4), asked=False)
    assert plan.report.single == (2, 4)
    assert "batch 1" in plan.report.left_out
    assert "SIGSEGV" in plan.report.left_out
    assert build.asked[-1] == (2, 4)


def test_what_was_asked_for_is_not_left_out(rtx: Family, exported: Callable[[str], Path]) -> None:
    with pytest.raises(BuildCrashed):
        sturdy_plan(Builds(exported("swin"), rtx, {1}), single=(1, 2), asked=True)


def test_a_graph_that_crashes_in_any_case_is_an_error(rtx: Family, exported: Callable[[str], Path]) -> None:
    build = Builds(exported("swin"), rtx, {None})
    with pytest.raises(BuildCrashed):
        sturdy_plan(build, single=(1, 2), asked=False)
    assert build.asked == [(1, 2), ()]


def test_a_worker_whose_parent_is_gone_ends(rtx: Family, exported: Callable[[str], Path]) -> None:
    def close_stdin() -> None:
        for process in workers():
            os.close(next(fd for fd in _pipes_to(process)))

    with pytest.raises((BuildCrashed, OSError)):
        plan_apart(exported("swin"), family=rtx, inputs=PICTURES, ranges=RANGES, progress=Act(close_stdin))


def _pipes_to(process: psutil.Process) -> list[int]:
    """Our file descriptors whose other end is the process's stdin."""
    stdin = os.readlink(f"/proc/{process.pid}/fd/0")
    ours = [int(fd) for fd in os.listdir("/proc/self/fd")]
    return [fd for fd in ours if os.path.exists(f"/proc/self/fd/{fd}") and os.readlink(f"/proc/self/fd/{fd}") == stdin]
