"""Real plans, built with TensorRT for RTX on a machine that need not have a GPU."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deployed import run_python
from graphs import model_of, written
from trtship.engine import Plan, check_can_build, plan_file_from_onnx, plan_from_onnx
from trtship.engine.problems import CAUSES, explain_build
from trtship.errors import BuildError, Cancelled, DeviceError, GraphError, OutputError, SpecError
from trtship.family import Family, choose_family, installed_families
from trtship.family.tf32 import VARIABLE
from trtship.gpu import list_gpus
from trtship.progress import Progress
from trtship.spec import Precision, ShapeRange, TensorSpec

pytestmark = pytest.mark.skipif("tensorrt_rtx" not in installed_families(), reason="needs tensorrt_rtx")
W = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
PRODUCT = "(float[B, 4] x) => (float[B, 3] y) { y = MatMul(x, w) }"
X = (TensorSpec(name="x", shape=("B", 4)),)
RANGES = {"B": ShapeRange(min=1, opt=2, max=4)}


@pytest.fixture(scope="module")
def rtx() -> Family:
    return choose_family("tensorrt_rtx")[0]


def build(graph: Path, family: Family, **options: Any) -> Plan:
    return plan_from_onnx(graph, family=family, **{"inputs": X, "ranges": RANGES, **options})


class Steps(Progress):
    def __init__(self, act: Callable[[], None] = lambda: None) -> None:
        self.act, self.seen = act, []  # type: ignore[var-annotated]

    def step(self, done: float, text: str = "") -> None:
        self.seen.append((done, text))
        self.act()


def test_a_plan_and_how_it_was_made(rtx: Family, tmp_path: Path) -> None:
    plan = build(written(tmp_path / "m.onnx", PRODUCT, w=W), rtx)
    report = plan.report
    assert len(plan.data) > 1000
    assert report.profiles == ({"x": ((1, 4), (2, 4), (4, 4))},)
    assert (report.family, report.version, report.layers > 0) == ("tensorrt_rtx", rtx.version, True)
    assert report.plan_mib == round(len(plan.data) / 2**20, 2)
    assert bool(report.gpu) == bool(list_gpus())


def test_steps_arrive_and_never_go_backwards(rtx: Family, exported: Callable[[str], Path]) -> None:
    steps = Steps()
    inputs = (TensorSpec(name="input", shape=("B", 3, 56, 56)),)
    plan = build(exported("swin"), rtx, inputs=inputs, progress=steps)
    fractions = [done for done, _ in steps.seen]
    assert len(fractions) > 20
    assert fractions == sorted(fractions)
    assert fractions[0] >= 0
    assert fractions[-1] == 1
    assert len({text for _, text in steps.seen}) > 2
    assert plan.log.startswith("[")
    assert {line[:3] for line in plan.log.splitlines() if line.startswith("[")} <= {"[I]", "[W]", "[E]"}
    assert plan.report.warnings == sum(line.startswith("[W]") for line in plan.log.splitlines())


def test_ctrl_c_cancels_and_lets_go(rtx: Family, exported: Callable[[str], Path]) -> None:
    """The signal comes while the tenth step is told, and is taken by this thread before TensorRT goes on."""
    taken = threading.Event()

    def take(*_: Any) -> None:
        taken.set()
        raise KeyboardInterrupt

    def interrupt() -> None:
        if len(steps.seen) == 10:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            taken.wait(60)

    inputs = (TensorSpec(name="input", shape=("B", 3, 56, 56)),)
    whole, steps = Steps(), Steps(interrupt)
    build(exported("swin"), rtx, inputs=inputs, progress=whole)
    threads = threading.active_count()
    variable = os.environ.get(VARIABLE)
    before = signal.signal(signal.SIGINT, take)
    try:
        with pytest.raises(Cancelled, match="was cancelled"):
            build(exported("swin"), rtx, inputs=inputs, progress=steps)
    finally:
        signal.signal(signal.SIGINT, before)
    assert taken.is_set()
    assert steps.seen[-1][0] < 1
    assert threading.active_count() == threads
    assert os.environ.get(VARIABLE) == variable
    assert len(build(exported("swin"), rtx, inputs=inputs).data) > 1000


def test_a_progress_that_raises_cancels_the_build_and_is_heard(rtx: Family, exported: Callable[[str], Path]) -> None:
    def raise_it() -> None:
        raise ConnectionError("the listener is gone")

    inputs = (TensorSpec(name="input", shape=("B", 3, 56, 56)),)
    steps = Steps(raise_it)
    with pytest.raises(ConnectionError, match="the listener is gone"):
        build(exported("swin"), rtx, inputs=inputs, progress=steps)
    assert steps.seen[-1][0] < 1


def test_an_exception_in_the_builder_is_not_lost(rtx: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> bytes:
        raise MemoryError("no room")

    monkeypatch.setattr(rtx, "build", fail)
    with pytest.raises(MemoryError, match="no room"):
        build(written(tmp_path / "m.onnx", PRODUCT, w=W), rtx)


def test_an_operator_that_tensorrt_lacks_is_named_with_its_node(rtx: Family, tmp_path: Path) -> None:
    model = model_of("(float[B, 4] x) => (float[B, 4] y) { h = Relu(x) y = Sort<axis = 1>(h) }")
    model.graph.node[1].name, model.graph.node[1].op_type = "head/sort", "BlackmanWindow"
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(GraphError) as caught:
        build(path, rtx)
    assert "BlackmanWindow at node head/sort" in caught.value.what
    assert caught.value.do


def test_a_file_that_is_no_graph_is_refused(rtx: Family, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_text("just text")
    with pytest.raises(GraphError, match="cannot read m"):
        build(tmp_path / "m.onnx", rtx)


@pytest.mark.parametrize(
    ("inputs", "match"),
    [
        ((TensorSpec(name="x", shape=("B", 5)),), "profile"),
        ((TensorSpec(name="x", shape=("B", 4, 1)),), "profile"),
    ],
)
def test_a_profile_that_does_not_fit_the_graph_is_explained(
    rtx: Family, inputs: tuple[TensorSpec, ...], match: str, tmp_path: Path
) -> None:
    with pytest.raises(BuildError, match=match) as caught:
        build(written(tmp_path / "m.onnx", PRODUCT, w=W), rtx, inputs=inputs)
    assert "--batch" in caught.value.do


def test_other_inputs_than_the_graphs_are_refused(rtx: Family, tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="other inputs than expected"):
        build(written(tmp_path / "m.onnx", PRODUCT, w=W), rtx, inputs=(TensorSpec(name="z", shape=("B", 4)),))


def test_a_letter_without_a_range_is_refused(rtx: Family, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no range for the dynamic size B"):
        build(written(tmp_path / "m.onnx", PRODUCT, w=W), rtx, ranges={})


def test_a_plan_for_one_target_is_smaller_than_one_for_all_and_says_so(rtx: Family, tmp_path: Path) -> None:
    graph = written(tmp_path / "m.onnx", PRODUCT, w=W)
    for targets in (("8.6",), ("8.9", "12.0")):
        assert build(graph, rtx, targets=targets).report.targets == targets
    assert build(graph, rtx).report.targets == ()
    assert build(graph, rtx, targets=("8.6",)).data != build(graph, rtx, targets=("12.0",)).data


def test_a_target_twice_is_one(rtx: Family, tmp_path: Path) -> None:
    graph = written(tmp_path / "m.onnx", PRODUCT, w=W)
    assert build(graph, rtx, targets=("8.6", "8.6")).data == build(graph, rtx, targets=("8.6",)).data


def test_an_unknown_target_is_refused_with_the_known_ones(rtx: Family) -> None:
    with pytest.raises(SpecError, match=r"8\.6") as caught:
        check_can_build(rtx, ("6.1",))
    assert "--target '6.1'" in caught.value.what


@pytest.mark.skipif(bool(list_gpus()), reason="this machine has a GPU")
def test_full_tensorrt_needs_a_gpu(rtx: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rtx, "builds_without_gpu", lambda: False)
    with pytest.raises(DeviceError, match="cannot build here"):
        check_can_build(rtx, ())


@pytest.mark.parametrize("before", [None, "1"])
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.TF32])
def test_the_variable_that_turns_tf32_off_is_set_while_building_and_then_as_it_was(
    rtx: Family, precision: Precision, before: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    if before is not None:
        monkeypatch.setenv(VARIABLE, before)
    seen: set[str | None] = set()
    steps = Steps(lambda: seen.add(os.environ.get(VARIABLE)))
    report = build(written(tmp_path / "m.onnx", PRODUCT, w=W), rtx, precision=precision, progress=steps).report
    wanted = {} if precision is Precision.TF32 else {VARIABLE: "0"}
    assert report.environment == wanted
    assert seen == {wanted.get(VARIABLE)}
    assert os.environ.get(VARIABLE) == before
    assert report.tf32 is (precision is Precision.TF32)


def test_builds_in_threads_take_turns_and_keep_their_own_precision(rtx: Family, tmp_path: Path) -> None:
    graph = written(tmp_path / "m.onnx", PRODUCT, w=W)
    found: dict[Precision, set[str | None]] = {Precision.FP32: set(), Precision.TF32: set()}

    def work(precision: Precision) -> None:
        steps = Steps(lambda: found[precision].add(os.environ.get(VARIABLE)))
        build(graph, rtx, precision=precision, progress=steps)

    threads = [threading.Thread(target=work, args=(p,)) for p in (*found, *found)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {Precision.FP32: {"0"}, Precision.TF32: {None}}


def test_a_plan_built_twice_is_the_same(rtx: Family, tmp_path: Path) -> None:
    graph = written(tmp_path / "m.onnx", PRODUCT, w=W)
    assert build(graph, rtx).data == build(graph, rtx).data


@pytest.mark.parametrize(("text", "cause", "remedy"), CAUSES)
def test_every_known_complaint_is_translated(rtx: Family, text: str, cause: str, remedy: str) -> None:
    log = ["[I] building", "[W] profile warning", f"[E] Error Code 7: {text} in node", "[E] more"]
    error = explain_build(log, rtx)
    assert cause in error.what
    assert error.why == f"Error Code 7: {text} in node"
    assert error.do == remedy


@pytest.mark.parametrize("log", [[], ["[E] something new"], ["[I] only talk of a profile"]])
def test_an_unknown_complaint_is_passed_on(rtx: Family, log: list[str]) -> None:
    error = explain_build(log, rtx)
    assert error.what.endswith("could not build the plan")
    assert error.why == ("something new" if log and log[0].startswith("[E]") else "it gave no reason")


def test_a_plan_file_and_its_log(tmp_path: Path) -> None:
    graph = written(tmp_path / "m.onnx", PRODUCT, w=W)
    report = plan_file_from_onnx(graph, tmp_path / "m.plan", precision=Precision.FP16, batch=RANGES["B"])
    assert (tmp_path / "m.plan").stat().st_size == pytest.approx(report.plan_mib * 2**20, abs=0.006 * 2**20)
    assert "[" in (tmp_path / "m.plan.log").read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "m.plan", "m.plan.log"]
    with pytest.raises(OutputError, match="exists"):
        plan_file_from_onnx(graph, tmp_path / "m.plan", precision=Precision.FP16)


def test_a_plan_file_of_a_graph_with_other_dynamic_sizes(tmp_path: Path) -> None:
    body = "(float[batch, tokens, 4] x) => (float[batch, tokens, 3] y) { y = MatMul(x, w) }"
    graph = written(tmp_path / "m.onnx", body, w=W)
    with pytest.raises(SpecError, match="dynamic size t"):
        plan_file_from_onnx(graph, tmp_path / "m.plan", precision=Precision.FP32)
    with pytest.raises(SpecError, match="no dynamic size z"):
        plan_file_from_onnx(graph, tmp_path / "m.plan", precision=Precision.FP32, sizes={"z": RANGES["B"]})
    sizes = {"t": ShapeRange(min=2, opt=3, max=4)}
    report = plan_file_from_onnx(graph, tmp_path / "m.plan", precision=Precision.FP32, batch=RANGES["B"], sizes=sizes)
    assert report.profiles == ({"x": ((1, 2, 4), (2, 3, 4), (4, 4, 4))},)


INTERRUPTED = """
import signal, threading
from pathlib import Path
from trtship.engine import plan_from_onnx
from trtship.errors import Cancelled
from trtship.family import choose_family
from trtship.progress import Progress
from trtship.spec import ShapeRange, TensorSpec

class Interrupt(Progress):
    def __init__(self, at):
        self.at, self.count = at, 0

    def step(self, done, text=""):
        self.count += 1
        if self.count in self.at:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

for at in ({{1}}, {{30, 31, 32}}, {{90}}):
    try:
        plan_from_onnx(
            Path({graph!r}), family=choose_family()[0], inputs=[TensorSpec(name="input", shape=("B", 3, 56, 56))],
            ranges={{"B": ShapeRange(min=1, opt=2, max=4)}}, progress=Interrupt(at),
        )
    except Cancelled:
        print("cancelled")
"""


def test_the_process_ends_well_after_ctrl_c(exported: Callable[[str], Path]) -> None:
    """TensorRT aborts a process that ends while it is at work: it must have let go before the error is raised."""
    done = run_python(INTERRUPTED.format(graph=str(exported("swin"))))
    assert done.stdout.split() == ["cancelled"] * 3
    assert "FATAL" not in done.stderr
