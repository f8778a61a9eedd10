"""Comparison, bounds and probes at every size: what is wrong at one set of sizes alone is found, and said where."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from graphs import written
from trtship.errors import InputError
from trtship.graphs import load_graph, rounding_bound
from trtship.graphs.rounding import QUANTILE
from trtship.passes import emulate_low, to_precision
from trtship.session.base import Array, Session
from trtship.session.onnxruntime import OnnxRuntimeSession
from trtship.spec import Precision, ShapeRange, TensorSpec
from trtship.verify import Bound, Verdict, attack, compare
from trtship.verify.bounds import derive_bounds
from trtship.verify.gates import Gates
from trtship.verify.reference import Reference, Untried, make_reference

INPUTS = (TensorSpec(name="x", shape=("B", 3, "H", "W")),)
OUTPUTS = (TensorSpec(name="y", shape=("B", 4)),)
RANGES = {
    "B": ShapeRange(min=1, opt=4, max=9),
    "H": ShapeRange(min=8, opt=16, max=40),
    "W": ShapeRange(min=4, opt=16, max=32),
}
USUAL = {"H": 16, "W": 16}
BOUND = Bound(value=1e-4, source="by hand", own=5e-5)
WEIGHT = np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32)
Defect = Callable[["Pool", Any, Any], Any]


class Pool(Session):
    """Means over the picture, then a product; its outputs go to memory of its own, and `defect` spoils them."""

    can_poison = True
    workers = 1

    def __init__(self, defect: Defect = lambda pool, x, y: y) -> None:
        self.inputs, self.outputs, self.runtime, self.defect = INPUTS, OUTPUTS, "numpy", defect
        self.buffer, self.kept, self.shapes = np.zeros((9, 4), np.float32), {}, []  # type: ignore[var-annotated]

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        x = feeds["x"]
        self.shapes.append(x.shape)
        if self.poison:
            self.buffer[:] = np.nan
        found = self.defect(self, x, np.tanh(x).mean((2, 3)) @ WEIGHT)
        self.buffer[: len(found)] = np.where(np.isnan(found), self.buffer[: len(found)], found)
        return {"y": self.buffer[: len(found)].copy()}


REFERENCE = make_reference(Pool(), sizes=USUAL, ranges=RANGES)


def compared(defect: Defect, **options: Any) -> Verdict:
    options = {"ranges": RANGES, "bound": BOUND, "batches": RANGES["B"].sizes_to_check, **options}
    return compare(Pool(defect), REFERENCE, subject="s", **options)


def where(wrong: Callable[[int, int, int], bool]) -> Defect:
    def defect(pool: Pool, x: Any, y: Any) -> Any:
        return y * (1.01 if wrong(len(x), x.shape[2], x.shape[3]) else 1)

    return defect


def test_what_is_right_passes_and_the_verdict_has_every_size() -> None:
    session = Pool()
    verdict = compare(session, REFERENCE, subject="s", batches=(1, 4, 9), bound=BOUND, ranges=RANGES)
    assert (verdict.state, verdict.note) == ("passed", "")
    assert {tuple(m.sizes.values()) for m in verdict.measures} == {(s[0], s[2], s[3]) for s in session.shapes}
    for place in (RANGES["H"].min, RANGES["H"].max, RANGES["H"].min + 1, RANGES["H"].max - 1):
        assert any(h == place and w == 16 for _, _, h, w in session.shapes)
    for b, _, h, w in ((1, 3, 8, 4), (2, 3, 9, 5), (8, 3, 39, 31), (9, 3, 40, 32)):
        assert (b, 3, h, w) in session.shapes


@pytest.mark.parametrize(
    "wrong",
    [
        lambda b, h, w: h == 9,  # MIN+1
        lambda b, h, w: w == 31,  # MAX-1
        lambda b, h, w: w % 2 and w not in (31, 5),  # an odd width
        lambda b, h, w: h > 30 and w > 30,  # both large
        lambda b, h, w: h < 10 and w > 10,  # one small, the other usual
        lambda b, h, w: b == 9 and h == 40 and w == 32,  # the largest of all alone
        lambda b, h, w: b == 2 and h == 9,
    ],
)
def test_what_is_wrong_at_some_sizes_alone_fails_and_says_where(wrong: Callable[[int, int, int], bool]) -> None:
    assert compared(where(wrong), ranges=None).state == "passed"
    verdict = compared(where(wrong))
    assert verdict.state == "failed"
    told = re.search("y is off by 0.01 at B=([0-9]+), H=([0-9]+), W=([0-9]+), over the bound 0.0001", verdict.reason)
    assert told is not None
    assert wrong(*map(int, told.groups()))


def test_nan_at_the_largest_sizes_fails() -> None:
    def overflows(pool: Pool, x: Any, y: Any) -> Any:
        return np.full_like(y, np.inf) if x.shape[2] * x.shape[3] > 1000 else y

    verdict = compared(overflows)
    assert (verdict.state, verdict.worst) == ("failed", None)
    assert "H=40, W=32" in verdict.reason


def test_a_session_that_does_not_run_at_some_sizes_fails() -> None:
    def refuses(pool: Pool, x: Any, y: Any) -> Any:
        if x.shape[3] == 4:
            raise InputError("no", why="too narrow")
        return y

    verdict = compared(refuses)
    assert verdict.state == "failed"
    assert verdict.reason.startswith("it could not run at B=1, H=8, W=4: no")


def test_sizes_that_the_models_rules_refuse_are_not_run() -> None:
    session = Pool()
    compare(
        session,
        REFERENCE,
        subject="s",
        batches=RANGES["B"].sizes_to_check,
        bound=BOUND,
        ranges=RANGES,
        allowed=lambda sizes: sizes["B"] % 2 == 0,
    )
    assert {shape[0] for shape in session.shapes} == {2, 4, 8}


def test_a_batch_that_is_too_much_for_one_run_is_run_smaller_and_the_verdict_says_so() -> None:
    most = 4 * 3 * 40 * 32
    verdict = compared(lambda pool, x, y: y, most=most, batches=(1,))
    assert max(m.sizes["B"] for m in verdict.measures if m.sizes["H"] == 40 and m.sizes["W"] == 32) == 4
    assert "at most B=4 at H=40 W=32" in verdict.note


def test_sizes_that_the_bundle_has_no_rows_for_are_told_with_the_pass() -> None:
    reference = msgspec.structs.replace(
        REFERENCE, others=REFERENCE.others[:1], untried=(Untried(sizes={"H": 9, "W": 5}, reason="no room"),)
    )
    verdict = compare(Pool(), reference, subject="s", batches=(1,), bound=BOUND, ranges=RANGES)
    assert (verdict.state, "not tried at H=9 W=5: no room" in verdict.note) == ("passed", True)


def test_each_size_is_held_to_its_own_bound() -> None:
    """2e-3 off at the largest sizes, where rounding alone explains it; and 2e-3 off at the smallest, where not."""
    wide = msgspec.structs.replace(BOUND, sizes={"H=40 W=32": Bound(value=5e-3, source="noise", own=4e-3)})

    def verdict(height: int) -> Verdict:
        return compared(where(lambda b, h, w: h == height and (w == 32 or height == 8)), bound=wide)

    def off(pool: Pool, x: Any, y: Any) -> Any:
        return y * (1.002 if x.shape[2:] == (40, 32) else 1)

    passed = compared(off, bound=wide)
    assert (passed.state, passed.limit, passed.held_to) == ("passed", 5e-3, 5e-3)
    assert passed.worst == pytest.approx(2e-3, rel=1e-2)
    assert compared(off).state == "failed"
    assert verdict(40).state == "failed"
    failed = verdict(8)
    assert (failed.state, failed.held_to) == ("failed", 1e-4)
    assert "over the bound 0.0001" in failed.reason


def test_a_bound_of_the_users_own_holds_at_every_size() -> None:
    derived = msgspec.structs.replace(BOUND, sizes={"H=40 W=32": Bound(value=5e-3, source="noise", own=4e-3)})
    found = Gates(max_rel_l2=2e-3).bound(derived)
    assert {found.value, found.at({"B": 1, "H": 40, "W": 32}).value} == {2e-3}
    assert found.at({"H": 40, "W": 32}).own == 4e-3
    assert found.covers(found)
    assert not Bound(value=1.0, source="", own=1.0).covers(derived)
    narrow = msgspec.structs.replace(derived, sizes={"H=40 W=32": Bound(value=4e-3, source="noise", own=4e-3)})
    assert derived.covers(narrow)
    assert not narrow.covers(derived)


def attacked(defect: Defect, reference: Reference = REFERENCE) -> dict[str, Verdict]:
    found = attack(lambda: Pool(defect), reference, subject="plan", ranges=RANGES, bound=BOUND)
    return {v.gate: v for v in found}


def test_every_probe_passes_what_is_right() -> None:
    found = attacked(lambda pool, x, y: y)
    assert {v.state for v in found.values()} == {"passed"}
    assert "after_other_sizes" in found


def at_max(defect: Defect) -> Defect:
    return lambda pool, x, y: defect(pool, x, y) if x.shape[2:] == (40, 32) else y


def leak(pool: Pool, x: Any, y: Any) -> Any:
    return y + 0.01 * np.abs(np.roll(x, 1, axis=0)).max((1, 2, 3))[:, None] * (len(x) > 1)


def last_row(pool: Pool, x: Any, y: Any) -> Any:
    return np.concatenate([y[:-1], y[-1:] * (1.01 if len(y) > 1 else 1)])


def grows(pool: Pool, x: Any, y: Any) -> Any:
    pool.kept["runs"] = pool.kept.get("runs", 0) + 1
    return y * (1 + 0.01 * pool.kept["runs"])


def unwritten(pool: Pool, x: Any, y: Any) -> Any:
    y = y.copy()
    y[-1, -1] = np.nan if pool.kept.get(x.shape) else y[-1, -1]
    pool.kept[x.shape] = True
    return y


def saturates(pool: Pool, x: Any, y: Any) -> Any:
    return np.where(np.abs(x).mean((1, 2, 3))[:, None] > 2, np.inf, y)


@pytest.mark.parametrize(
    ("defect", "probe"),
    [
        (leak, "changed_row"),
        (last_row, "identical_rows"),
        (lambda pool, x, y: y[::-1] if len(y) == 4 else y, "permuted_rows"),
        (grows, "repeated"),
        (unwritten, "poisoned_outputs"),
        (saturates, "edge_inputs"),
    ],
)
def test_a_defect_at_the_largest_sizes_alone_is_caught_by_its_probe(defect: Defect, probe: str) -> None:
    if probe == "permuted_rows":
        defect = _swapped
    verdict = attacked(at_max(defect))[probe]
    assert verdict.state == "failed"
    assert "H=40, W=32" in verdict.reason


def _swapped(pool: Pool, x: Any, y: Any) -> Any:
    order = np.arange(len(y))
    order[1:3] = order[1:3][::-1]
    return y[order]


def test_what_a_run_at_larger_sizes_leaves_behind_is_found() -> None:
    def left_over(pool: Pool, x: Any, y: Any) -> Any:
        before, pool.kept["area"] = pool.kept.get("area", 0), x.shape[2] * x.shape[3]
        return y * (1.01 if before > pool.kept["area"] and len(x) == 1 else 1)

    verdict = attacked(left_over)["after_other_sizes"]
    assert verdict.state == "failed"
    assert verdict.reason.startswith("running after other sizes should give the same: y is off by")


def test_two_contexts_are_warmed_up_at_the_sizes_of_the_reference() -> None:
    """Whatever ranges the session itself has: one of onnxruntime has none."""
    opened: list[Pool] = []

    def opens() -> Pool:
        opened.append(Pool())
        return opened[-1]

    found = attack(opens, REFERENCE, subject="plan", ranges=RANGES, bound=BOUND)
    assert {v.gate: v.state for v in found}["two_contexts"] == "passed"
    assert {shape[2:] for shape in opened[-1].shapes} == {(16, 16)}


def test_warm_up_without_a_size_says_how_to_give_it() -> None:
    with pytest.raises(InputError, match="warm_up needs a size for H") as caught:
        Pool().warm_up([2])
    assert "sizes={'H': ...}" in caught.value.why
    session = Pool()
    session.warm_up([2], sizes={"H": 9, "W": 4})
    assert session.shapes == [(2, 3, 9, 4)]


ATTENTION = """(float[B, L, 8] x) => (float[B, 4] y) {
    k = Abs(x)
    t = Transpose<perm = [0, 2, 1]>(k)
    s = MatMul(t, k)
    axes = Constant<value_ints = [1]>()
    sums = ReduceMean<keepdims = 0>(s, axes)
    a = Div(sums, scale)
    y = MatMul(a, w)
}"""
"""As linear attention: a sum over all tokens, which leaves fp16's range where there are many."""
OFFSET = """(float[B, L, 8] x) => (float[B, 4] y) {
    raised = Add(x, scale)
    back = Sub(raised, scale)
    k = Abs(back)
    axes = Constant<value_ints = [1]>()
    a = ReduceMean<keepdims = 0>(k, axes)
    y = MatMul(a, w)
}"""
LENGTHS = {"B": ShapeRange(min=1, opt=2, max=4), "L": ShapeRange(min=4, opt=16, max=4096)}


def low_graph(
    folder: Path, precision: Precision, scale: float, body: str = ATTENTION
) -> tuple[Session, Reference, dict[str, Bound]]:
    """The graph in this precision, every tensor rounded; its reference; and the bounds that a deploy derives."""
    w = np.random.default_rng(3).standard_normal((8, 4)).astype(np.float32)
    written(folder / "a.onnx", body, w=w, scale=np.array(scale, np.float32))
    to_precision(folder / "a.onnx", folder / "low.onnx", precision)
    emulate_low(folder / "low.onnx", folder / "emulated.onnx")
    with OnnxRuntimeSession(folder / "a.onnx") as session:
        reference = make_reference(session, sizes={"L": 16}, ranges=LENGTHS)
    counted = rounding_bound(load_graph(folder / "a.onnx"), Precision.FP32)
    path = rounding_bound(load_graph(folder / "low.onnx"), precision).bound / QUANTILE
    bounds = derive_bounds(folder / "low.onnx", precision, reference, counted=counted, path=path)
    return OnnxRuntimeSession(folder / "emulated.onnx"), reference, bounds


@pytest.mark.parametrize(("precision", "state"), [(Precision.FP16, "failed"), (Precision.BF16, "passed")])
def test_a_sum_over_all_tokens_that_overflows_at_max_is_refused_in_fp16(
    precision: Precision, state: str, tmp_path: Path
) -> None:
    session, reference, bounds = low_graph(tmp_path, precision, 1.0)
    scaled = {name: array * 12 for name, array in reference.inputs.items()}
    assert max(float(np.abs(a).max()) for a in scaled.values()) < 100
    with OnnxRuntimeSession(tmp_path / "a.onnx") as full, session:
        louder = msgspec.structs.replace(
            reference,
            others=tuple(
                msgspec.structs.replace(
                    other, inputs={"x": other.inputs["x"] * 12}, outputs=full.infer({"x": other.inputs["x"] * 12})
                )
                for other in reference.others
            ),
        )
        bound = bounds["plan"]
        verdict = compare(session, louder, subject="plan", batches=(1, 2, 4), bound=bound, ranges=LENGTHS)
        usual = compare(session, louder, subject="plan", batches=(1, 2, 4), bound=bound)
    assert (usual.state, verdict.state) == ("passed", state)
    if state == "failed":
        assert "NaN or Inf in y at B=1, L=4096" in verdict.reason


def test_the_bound_at_a_size_is_that_of_the_noise_measured_there(tmp_path: Path) -> None:
    """A mean over more tokens averages their roundings: at MAX there is less noise than at MIN, and the bound is
    tighter. The right graph stays within it, and an error that the bound at MIN would pass fails at MAX."""
    session, reference, bounds = low_graph(tmp_path, Precision.FP16, 20.0, body=OFFSET)
    bound = bounds["plan"]
    assert {key.partition("=")[0] for key in bound.sizes} == {"L"}
    smallest, largest = bound.at({"B": 1, "L": 4}), bound.at({"B": 4, "L": 4096})
    assert smallest.value > 1.2 * largest.value
    assert bound.at({"B": 2, "L": 16}).value == bound.value
    with session:
        verdict = compare(session, reference, subject="plan", batches=(1, 2, 4), bound=bound, ranges=LENGTHS)
        assert verdict.state == "passed"
        off = 1 + (smallest.value + largest.value) / 2

        class Spoilt(Session):
            inputs, outputs, runtime = session.inputs, session.outputs, "spoilt"

            def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
                length = feeds["x"].shape[1]
                return {name: a * (off if length > 1000 else 1) for name, a in session.infer(feeds).items()}

        spoilt = compare(Spoilt(), reference, subject="plan", batches=(1, 2, 4), bound=bound, ranges=LENGTHS)
    assert spoilt.state == "failed"
    assert "L=4095" in spoilt.reason or "L=4096" in spoilt.reason


GRAM = """(float[B, L, 8] x) => (float[B, 4] y) {
    t = Transpose<perm = [0, 2, 1]>(x)
    s = MatMul(t, x)
    axes = Constant<value_ints = [1]>()
    a = ReduceMean<keepdims = 0>(s, axes)
    y = MatMul(a, w)
}"""


def test_a_sum_over_more_terms_has_more_roundings_and_the_bound_of_fp32_counts_them(tmp_path: Path) -> None:
    """On constant rows each of 65,536 additions rounds the same way, which the bound for 1,024 of them forbids."""
    w = np.random.default_rng(3).random((8, 4)).astype(np.float32)
    graph = written(tmp_path / "a.onnx", GRAM, w=w)
    lengths = {"B": ShapeRange(min=1, opt=1, max=1), "L": ShapeRange(min=4, opt=16, max=65536)}
    with OnnxRuntimeSession(graph) as session:
        reference = make_reference(session, sizes={"L": 16}, ranges=lengths)
    counted = rounding_bound(load_graph(graph), Precision.FP32)
    bound = derive_bounds(graph, Precision.FP32, reference, counted=counted, path=counted.bound / QUANTILE)["plan"]
    assert bound.value == pytest.approx(2 * counted.bound)
    assert bound.at({"B": 1, "L": 65536}).value == pytest.approx(8 * bound.value, rel=0.05)
    assert bound.at({"B": 1, "L": 5}).value == bound.value
