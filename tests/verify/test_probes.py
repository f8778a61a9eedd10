"""Each probe: passed by what is right, failed by its defect, however small a share of the output it takes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from trtship.errors import InputError
from trtship.preprocess import Normalize, Preprocess, Rescale, Resize
from trtship.session.base import Array, Session
from trtship.spec import Precision, ShapeRange, TensorSpec
from trtship.verify import Bound, Reference, Verdict, all_probes, attack, compare
from trtship.verify.edges import edge_rows
from trtship.verify.reference import make_reference

U = Precision.FP16.unit_roundoff
BOUND = Bound(value=4 * U, source="fp16, by hand", own=2 * U)
RANGE = {"B": ShapeRange(min=1, opt=4, max=9)}
INPUTS = (TensorSpec(name="x", shape=("B", 3, 8, 8)),)
OUTPUTS = (TensorSpec(name="y", shape=("B", 10)),)
WEIGHT = np.random.default_rng(7).standard_normal((192, 10)).astype(np.float32)
Defect = Callable[["Plan", Any, Any], Any]


class Plan(Session):
    """A small classifier whose every run rounds otherwise, as kernels of different shapes do, with memory of its own:
    a buffer for its outputs, and whatever a defect keeps in `kept`. `defect(plan, x, y)` returns what is wrong."""

    can_poison = True
    at_once = 0

    def __init__(self, defect: Defect = lambda plan, x, y: y) -> None:
        self.inputs, self.outputs, self.ranges, self.runtime = INPUTS, OUTPUTS, RANGE, "numpy"
        self.defect, self.kept, self._rng = defect, {}, np.random.default_rng(1)  # type: ignore[var-annotated]
        self.buffer = np.zeros((RANGE["B"].max, 10), np.float32)

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        Plan.at_once += 1
        try:
            x = feeds["x"]
            if self.poison:
                self.buffer[:] = np.nan
            y = right(x) * (1 + U * self._rng.uniform(-1, 1, (len(x), 10)))
            found = self.defect(self, x, y.astype(np.float32))
            self.buffer[: len(found)] = np.where(np.isnan(found), self.buffer[: len(found)], found)
            return {"y": self.buffer[: len(found)].copy()}
        finally:
            Plan.at_once -= 1


def right(x: Any) -> Any:
    flat = x.reshape(len(x), -1)
    return np.tanh(flat) @ WEIGHT


class Original(Plan):
    """The same without rounding."""

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        return {"y": right(feeds["x"]).astype(np.float32)}


REFERENCE = make_reference(Original(), sizes={})


def attacked(defect: Defect, reference: Reference = REFERENCE) -> dict[str, Verdict]:
    opened: list[Plan] = []

    def open_session() -> Plan:
        opened.append(Plan(defect))
        return opened[-1]

    verdicts = attack(open_session, reference, subject="plan", ranges=RANGE, bound=BOUND)
    assert all(session.unusable for session in opened)
    return {v.gate: v for v in verdicts}


EVERY = {probe.name for probe in all_probes()}
ALL = EVERY - {probe.name for probe in all_probes() if probe.of_sizes}
"""Those that have a meaning for a model whose batch alone is dynamic."""


def test_the_probes_are_found_by_their_files() -> None:
    folder = Path(__file__).parents[2] / "src" / "trtship" / "verify" / "probes"
    assert {p.stem for p in folder.glob("*.py")} - {"__init__", "base", "registry"} == EVERY


def test_what_is_right_passes_all_though_no_two_runs_are_equal_bit_for_bit() -> None:
    verdicts = attacked(lambda plan, x, y: y)
    assert {gate: v.state for gate, v in verdicts.items()} == dict.fromkeys(ALL, "passed")
    assert verdicts["repeated"].worst
    for gate in ALL - {"edge_inputs"}:
        bound = verdicts[gate].bound
        assert bound is not None
        assert bound.value == pytest.approx(np.sqrt(2) * 2 * U)
        assert "two runs" in bound.source


def leak(plan: Plan, x: Any, y: Any) -> Any:
    """Each row has a two-hundredth of what is in the row before it."""
    return y + np.abs(np.roll(x, 1, axis=0)).max((1, 2, 3))[:, None] / 200 * np.abs(y).mean() * (len(x) > 1)


def first_for_all(plan: Plan, x: Any, y: Any) -> Any:
    return y + 0.003 * y[:1]


def place_matters(plan: Plan, x: Any, y: Any) -> Any:
    y[-1] *= 1 + 8 * U * (len(y) > 1)
    return y


def swapped(plan: Plan, x: Any, y: Any) -> Any:
    """The second and third row have changed places."""
    order = np.arange(len(y))
    order[1:3] = order[1:3][::-1]
    return y[order]


def grows(plan: Plan, x: Any, y: Any) -> Any:
    """A sum that is never set back to zero."""
    plan.kept["sum"] = plan.kept.get("sum", 0) + 1
    return y * (1 + 4 * U * plan.kept["sum"])


def left_over(plan: Plan, x: Any, y: Any) -> Any:
    """The rows behind a smaller batch's are added in from the larger one before it."""
    kept = plan.kept.get("y")
    plan.kept["y"] = y.copy()
    return y if kept is None or len(kept) <= len(y) else y + 0.01 * kept[len(y)]


def not_grown(plan: Plan, x: Any, y: Any) -> Any:
    """A buffer that was made for the batch before is too small for a larger one: its last row is the row before."""
    before, plan.kept["rows"] = plan.kept.get("rows", len(y)), len(y)
    if before < len(y):
        y[-1] = y[-2]
    return y


def unwritten(plan: Plan, x: Any, y: Any) -> Any:
    """The last class of the last row is never written: what stood there stays, and that was right once."""
    if "warm" in plan.kept:
        y[-1, -1] = np.nan
    plan.kept["warm"] = True
    return y


def nan_on_constant(plan: Plan, x: Any, y: Any) -> Any:
    y[x.std((1, 2, 3)) == 0] = np.inf
    return y


def saturates(plan: Plan, x: Any, y: Any) -> Any:
    """Inputs are cut off at what ordinary pictures hold; the largest of the range are beyond."""
    limit = 0.95 * max(np.abs(REFERENCE.inputs["x"]).max(), 1)
    return y * (1 - 0.02 * (np.abs(x).mean((1, 2, 3)) > limit))[:, None]


SHARED = {"lock": threading.Lock(), "rows": np.zeros(10, np.float32)}


def shared(plan: Plan, x: Any, y: Any) -> Any:
    """All contexts have one scratch memory."""
    SHARED["rows"] = y.sum(0)
    deadline = time.monotonic() + 0.05
    while Plan.at_once < 2 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.002)
    return y + (SHARED["rows"] - y.sum(0))


@pytest.mark.parametrize(
    ("defect", "probe"),
    [
        (leak, "changed_row"),
        (first_for_all, "changed_row"),
        (place_matters, "identical_rows"),
        (swapped, "permuted_rows"),
        (grows, "repeated"),
        (left_over, "after_other_batches"),
        (not_grown, "after_other_batches"),
        (unwritten, "poisoned_outputs"),
        (nan_on_constant, "edge_inputs"),
        (saturates, "edge_inputs"),
        (shared, "two_contexts"),
    ],
)
def test_each_defect_is_caught_by_its_probe_which_says_what_does_not_hold(defect: Defect, probe: str) -> None:
    verdict = attacked(defect)[probe]
    assert verdict.state == "failed"
    claim = next(p.claim for p in all_probes() if p.name == probe)
    assert verdict.reason.startswith(f"{claim}: ")


def test_what_is_wrong_only_once_a_plan_is_replayed_fails_the_comparison() -> None:
    """The third run of a size is the first that a CUDA graph does; one run says nothing of it."""

    class Replaying(Plan):
        steady_after = 2

    def replayed(plan: Plan, x: Any, y: Any) -> Any:
        plan.kept[len(x)] = plan.kept.get(len(x), 0) + 1
        return y * (1 + 8 * U * (plan.kept[len(x)] == 3))

    for kind, state in ((Plan, "passed"), (Replaying, "failed")):
        with kind(replayed) as session:
            verdict = compare(session, REFERENCE, subject="s", batches=[1, 4], bound=BOUND)
        assert verdict.state == state
        assert [one.sizes for one in verdict.measures] == [{"B": 1}, {"B": 4}]


def test_nan_of_a_replay_fails_the_comparison_however_near_the_first_run_was() -> None:
    class Replaying(Plan):
        steady_after = 2

    def replayed(plan: Plan, x: Any, y: Any) -> Any:
        plan.kept["runs"] = plan.kept.get("runs", 0) + 1
        return y if plan.kept["runs"] < 3 else np.where(y > 0, np.inf, y)

    with Replaying(replayed) as session:
        assert compare(session, REFERENCE, subject="s", batches=[4], bound=BOUND).state == "failed"


def test_two_threads_meet_in_one_session_that_runs_several_calls_at_once() -> None:
    class Several(Plan):
        workers = 2

    opened: list[Plan] = []

    def opens() -> Plan:
        opened.append(Several(shared_by_itself))
        return opened[-1]

    def shared_by_itself(plan: Plan, x: Any, y: Any) -> Any:
        """Two runs of one session meet in its scratch memory; those of two sessions do not."""
        plan.kept["rows"] = y.sum(0)
        time.sleep(0.01)
        return y + (plan.kept["rows"] - y.sum(0))

    found = attack(opens, REFERENCE, subject="plan", ranges=RANGE, bound=BOUND)
    assert {v.gate for v in found if v.state == "failed"} == {"two_contexts"}


@pytest.mark.parametrize(
    ("defect", "probe"),
    [(nan_on_constant, "edge_inputs"), (saturates, "edge_inputs"), (shared, "two_contexts")],
)
def test_a_defect_that_one_probe_alone_asks_for_fails_no_other(defect: Defect, probe: str) -> None:
    assert {gate for gate, v in attacked(defect).items() if v.state == "failed"} == {probe}


def test_an_output_left_unwritten_looks_right_until_it_is_poisoned() -> None:
    with Plan(unwritten) as session:
        for _ in range(2):
            assert compare(session, REFERENCE, subject="s", batches=[9], bound=BOUND).state == "passed"
        session.poison = True
        assert compare(session, REFERENCE, subject="s", batches=[9], bound=BOUND).state == "failed"


def test_outputs_that_are_wrong_but_written_are_no_matter_of_poison() -> None:
    def wrong(plan: Plan, x: Any, y: Any) -> Any:
        return 2 * y

    states = {gate: v.state for gate, v in attacked(wrong).items()}
    assert states["edge_inputs"] == "failed"
    assert states["poisoned_outputs"] == "passed"


def test_the_edge_row_that_fails_is_named() -> None:
    verdict = attacked(nan_on_constant)["edge_inputs"]
    assert "the row 'm" in verdict.reason
    assert "NaN or Inf in y" in verdict.reason


def test_an_edge_row_of_more_noise_has_a_bound_of_its_own() -> None:
    def noisy(plan: Plan, x: Any, y: Any) -> Any:
        return y * (1 + 10 * U * (x.std((1, 2, 3)) == 0))[:, None]

    def verdict(bound: Bound) -> str:
        found = attack(lambda: Plan(noisy), REFERENCE, subject="s", ranges=RANGE, bound=bound)
        return {v.gate: v.state for v in found}["edge_inputs"]

    assert verdict(BOUND) == "failed"
    assert verdict(msgspec.structs.replace(BOUND, rows={"min": 12 * U, "max": 12 * U, "middle": 12 * U})) == "passed"
    assert verdict(msgspec.structs.replace(BOUND, rows={"min": 12 * U})) == "failed"


def test_a_row_of_which_the_original_says_nan_is_left_out_and_told() -> None:
    edges = REFERENCE.edges
    assert edges is not None
    outputs = edges.outputs["y"].copy()
    outputs[edges.names.index("hot_pixel")] = np.nan
    reference = msgspec.structs.replace(REFERENCE, edges=msgspec.structs.replace(edges, outputs={"y": outputs}))
    verdict = attacked(lambda plan, x, y: y, reference)["edge_inputs"]
    assert (verdict.state, verdict.note) == ("passed", "the original itself says NaN or Inf of hot_pixel")


def test_a_bundle_without_edges_is_told_and_the_other_probes_run() -> None:
    verdicts = attacked(leak, msgspec.structs.replace(REFERENCE, edges=None))
    assert verdicts["edge_inputs"].state == "not run"
    assert verdicts["changed_row"].state == "failed"


def test_a_session_that_raises_fails_the_probe_and_not_the_attack() -> None:
    def refuses(plan: Plan, x: Any, y: Any) -> Any:
        if len(x) == 9:
            raise InputError("no nine", why="broken")
        return y

    verdicts = attacked(refuses)
    assert verdicts["identical_rows"].state == "failed"
    assert "it could not run: no nine (broken)" in verdicts["identical_rows"].reason
    assert verdicts["two_contexts"].state == "passed"


def test_one_row_has_no_neighbours() -> None:
    found = attack(lambda: Plan(), REFERENCE, subject="s", ranges={"B": ShapeRange(min=1, opt=1, max=1)}, bound=BOUND)
    assert {v.gate for v in found} == {"repeated", "edge_inputs", "poisoned_outputs", "two_contexts"}


def test_an_open_session_stays_open() -> None:
    with Plan() as session:
        attack(lambda: Plan(), REFERENCE, subject="s", ranges=RANGE, bound=BOUND, session=session)
        session.infer(REFERENCE.at(1)[0])


def test_the_edges_are_at_the_ends_of_what_preprocessing_gives() -> None:
    preprocess = Preprocess(
        mode="RGB",
        exif_transpose=False,
        steps=(
            Resize(height=8, width=8, fit="exact", interpolation="bilinear"),
            Rescale(factor=1 / 255),
            Normalize(mean=(0.5, 0.4, 0.0), std=(0.5, 0.2, 1.0)),
        ),
    )
    names, made = edge_rows(INPUTS, REFERENCE.inputs, preprocess=preprocess)
    rows = dict(zip(names, made["x"], strict=True))
    low, high = np.array([-1, -2, 0], np.float32), np.array([1, 3, 1], np.float32)
    np.testing.assert_allclose(rows["min"][:, 0, 0], low)
    np.testing.assert_allclose(rows["max"][:, 0, 0], high)
    np.testing.assert_allclose(rows["middle"][:, 3, 5], (low + high) / 2)
    assert (rows["hot_pixel"] != rows["min"]).sum() == 3
    assert {float(v) for v in np.unique(rows["extremes"][1])} == {-2.0, 3.0}
    np.testing.assert_allclose(rows["stripes"][0, 0, :4], [-1, 1, -1, 1])


def test_without_preprocessing_the_edges_are_those_of_the_reference_rows() -> None:
    x = REFERENCE.inputs["x"]
    _, made = edge_rows(INPUTS, REFERENCE.inputs, preprocess=None)
    assert (made["x"].min(), made["x"].max()) == (x.min(), x.max())


def test_an_input_of_one_number_a_row_has_edges() -> None:
    """A denoiser's steps, or the lengths of texts: [B]."""
    spec = TensorSpec(name="t", shape=("B",), dtype="int32")
    names, made = edge_rows([spec], {"t": np.array([0, 500, 999], np.int32)}, preprocess=None)
    assert made["t"].shape == (len(names),)
    assert {0, 999} <= set(made["t"].tolist())


def test_a_fixed_shape_that_is_no_batch_of_pictures_is_not_taken_apart_by_rows() -> None:
    """[3, 8] may be three rows, or one matrix: nobody said."""

    class Fixed(Original):
        def __init__(self) -> None:
            super().__init__()
            self.inputs, self.outputs = (TensorSpec(name="x", shape=(3, 8)),), (TensorSpec(name="y", shape=(3, 8)),)

        def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
            return {"y": feeds["x"] - feeds["x"].mean(0)}

    reference = make_reference(Fixed(), sizes={})
    found = attack(lambda: Fixed(), reference, subject="s", ranges={}, bound=BOUND)
    assert {v.gate: v.state for v in found} == dict.fromkeys(
        ("repeated", "edge_inputs", "poisoned_outputs", "two_contexts"), "passed"
    )
