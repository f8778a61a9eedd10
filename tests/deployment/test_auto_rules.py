"""How a search is asked for, what it costs without a GPU, and which candidate it chooses."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import trtship
from deployed import COLOURS
from graphs import small_model, written
from trtship.bench.plan import PlanFile
from trtship.bench.report import Row
from trtship.bench.timing import Timing
from trtship.bundle.candidates import Candidate, Latency
from trtship.deployment.search.attempt import Attempt
from trtship.deployment.search.choose import choose_timed, choose_untimed, latency_at, why_not
from trtship.deployment.search.estimate import estimated_ms, node_costs
from trtship.deployment.search.gates import plan_is_broken
from trtship.deployment.search.keeping import least_kept
from trtship.deployment.search.order import SAFEST_FIRST, risk
from trtship.deployment.search.profile_process import layer_times_apart
from trtship.deployment.search.searching import notes_on_eager
from trtship.deployment.search.sensitivity import Meter, sensitivities
from trtship.deployment.search.timing import times_of, with_times
from trtship.deployment.search_options import parse_candidates, parse_duration
from trtship.deployment.way import Way
from trtship.errors import DeviceError, GateError, SpecError
from trtship.gpu import list_gpus
from trtship.measure import measure, random_inputs
from trtship.passes import to_precision
from trtship.session.torch import TorchSession
from trtship.spec import Precision, TensorSpec
from trtship.verify.reference import Reference, make_reference
from trtship.verify.verdict import Bound, judged

FP32, TF32, FP16, BF16, INT8 = (
    Way(precision=p) for p in (Precision.FP32, Precision.TF32, Precision.FP16, Precision.BF16, Precision.INT8)
)


def tried(way: Way, ms: float | None = None, *, spread: float = 0.01, outcome: str = "passed") -> Attempt:
    times = () if ms is None else (Latency(batch=8, ms=ms, low=ms * (1 - spread), high=ms * (1 + spread)),)
    candidate = Candidate(
        name=way.name,
        precision=way.precision,
        kept=way.kept,
        outcome=outcome,  # type: ignore[arg-type]
        latency=times,
    )
    return Attempt(way, candidate, None)


# The choice


def test_the_fastest_that_passed_is_chosen() -> None:
    attempts = [tried(FP32, 4), tried(FP16, 1), tried(BF16, 2), tried(INT8, 0.5, outcome="failed")]
    assert choose_timed(attempts, batch=8) is attempts[1]


def test_a_safer_one_is_chosen_where_it_is_not_clearly_slower() -> None:
    attempts = [tried(FP32, 4), tried(FP16, 1.01), tried(BF16, 1.0)]
    assert choose_timed(attempts, batch=8) is attempts[1]
    assert "safer and not clearly slower" in why_not(attempts[2], attempts[1], batch=8, estimates={})


def test_int8_that_is_slower_than_fp16_is_not_shipped() -> None:
    attempts = [tried(FP32, 13.98), tried(FP16, 2.38), tried(INT8, 4.3)]
    chosen = choose_timed(attempts, batch=8)
    assert chosen is attempts[1]
    assert why_not(attempts[2], attempts[1], batch=8, estimates={}) == "4.3 ms at batch 8, and fp16 takes 2.38"


@pytest.mark.parametrize(
    ("graph", "plan", "broken"),
    [(1.0, np.nan, True), (1.0, 1.5, False), (np.nan, np.nan, False), (1.0, 1.0, False), (np.nan, 1.0, False)],
)
def test_a_plan_is_broken_where_it_says_nan_and_its_graph_does_not(graph: float, plan: float, broken: bool) -> None:
    """Then no mixture is looked for: onnxruntime has nothing to measure."""
    right, bound = np.ones((2, 3), np.float32), Bound(value=0.1, source="a test")
    verdicts = [
        judged(name, "rel_l2", [measure(right, right * said, output="y", sizes={})], bound=bound, runtime="")
        for name, said in (("graph int8", graph), ("plan", plan))
    ]
    candidate = Candidate(name="int8", precision=Precision.INT8, verdicts=tuple(verdicts))
    assert plan_is_broken(candidate) is broken


WAYS = [
    Way(precision=p, kept=kept) for p in SAFEST_FIRST for kept in ((), ("a",)) if not kept or p.graph_dtype != "float32"
]


@given(
    st.lists(
        st.tuples(st.sampled_from(WAYS), st.floats(0.1, 10), st.floats(0, 0.3), st.sampled_from(["passed", "failed"])),
        min_size=1,
        max_size=8,
        unique_by=lambda one: one[0],
    )
)
def test_what_is_shipped_passed_and_no_safer_one_is_faster(found: list[tuple[Way, float, float, str]]) -> None:
    attempts = [tried(way, ms, spread=spread, outcome=outcome) for way, ms, spread, outcome in found]
    passed = [a for a in attempts if a.candidate.outcome == "passed"]
    chosen = choose_timed(attempts, batch=8)
    assert (chosen is None) == (not passed)
    if chosen is None:
        return
    assert chosen.candidate.outcome == "passed"
    ours = latency_at(chosen.candidate, 8)
    assert ours is not None
    for other in passed:
        theirs = latency_at(other.candidate, 8)
        assert theirs is not None
        assert ours.low <= theirs.high
        if risk(other.way) < risk(chosen.way):
            assert theirs.ms >= ours.ms


def test_what_was_not_timed_is_not_chosen_by_time() -> None:
    assert choose_timed([tried(FP32), tried(FP16)], batch=8) is None
    attempts = [tried(FP32, 1.0), tried(FP16)]
    assert choose_timed(attempts, batch=8) is attempts[0]
    assert why_not(attempts[1], attempts[0], batch=8, estimates={}) == "it could not be timed"


def test_without_times_the_estimate_decides_and_8_bits_are_not_shipped() -> None:
    attempts = [tried(FP32), tried(FP16), tried(BF16), tried(INT8)]
    estimates = {"fp32": 4.0, "fp16": 1.0, "bf16": 1.0, "int8": 0.5}
    assert choose_untimed(attempts, estimates) is attempts[1]
    assert choose_untimed(attempts[3:], estimates) is None
    assert "which is safer" in why_not(attempts[2], attempts[1], batch=8, estimates=estimates)
    assert "without a measured time" in why_not(attempts[3], attempts[1], batch=8, estimates=estimates)


def test_the_order_of_safety_puts_a_mixture_before_its_precision() -> None:
    more, less = (Way(precision=Precision.FP16, kept=tuple(f"n{i}" for i in range(n))) for n in (5, 1))
    ways = [INT8, FP16, more, BF16, FP32, TF32, less]
    assert sorted(ways, key=risk) == [FP32, TF32, more, less, FP16, BF16, INT8]


# The times


def row(name: str, batch: int, ms: float | None, *, right: bool = True, reason: str = "") -> Row:
    timing = None if ms is None else Timing(median_ms=ms, low_ms=ms, high_ms=ms, rounds=15, calls=9)
    return Row(batch=batch, name=name, ours=name != "eager", gpu=timing, right=right, reason=reason)


def test_only_what_is_right_at_every_batch_has_times() -> None:
    rows = [
        *(row("eager", batch, 1.0 * batch) for batch in (8, 1)),
        row("eager, CUDA graph", 8, 0.5),
        *(row("fp16", batch, 0.1 * batch) for batch in (8, 1)),
        row("int8", 8, 0.3),
        row("int8", 1, None, right=False, reason="its process was ended by SIGSEGV"),
        row("fp8", 8, 0.2, right=False),
        row("fp8", 1, 0.1),
    ]
    times = times_of(rows, ("fp16", "int8", "fp8", "bf16", "eager"))
    assert {name: [(t.batch, t.ms) for t in found] for name, found in times.latency.items()} == {
        "eager": [(1, 1.0), (8, 8.0)],
        "fp16": [(1, 0.1), (8, 0.8)],
    }
    assert times.failed == {
        "int8": "batch 1: its process was ended by SIGSEGV",
        "fp8": "batch 8: its output was wrong while it was timed",
        "bf16": "it did not get ready",
    }
    assert times.wrong == ("fp8",)
    fp16, fp8 = with_times([tried(FP16), tried(Way(precision=Precision.FP8))], times)
    assert (fp16.candidate.outcome, len(fp16.candidate.latency)) == ("passed", 2)
    assert (fp8.candidate.outcome, fp8.candidate.latency) == ("failed", ())


@pytest.mark.parametrize(("eager", "said"), [(3.0, 0), (2.0, 1), (1.0, 1)])
def test_a_bundle_that_is_not_faster_than_eager_says_so(eager: float, said: int) -> None:
    theirs = (Latency(batch=8, ms=eager, low=0.99 * eager, high=1.01 * eager),)
    notes = notes_on_eager(tried(FP16, 2.0).candidate, theirs)
    assert len(notes) == said
    assert all("fp16 is not faster than eager PyTorch at batch 8: 2 ms against" in note for note in notes)


# The gates


@pytest.mark.parametrize(("option", "value"), [("max_rel_l2", 1e-6), ("min_cosine", 1.0)])
def test_a_gate_holds_for_one_precision_as_well(tmp_path: Path, option: str, value: float) -> None:
    (tmp_path / "colours.py").write_text(COLOURS)
    source, options = f"{tmp_path / 'colours.py'}:colours", {"exporter": "torchscript", "batch": "1:2:4"}
    loose: dict[str, Any] = {option: 0.1}
    tight: dict[str, Any] = {option: value}
    trtship.deploy(source, tmp_path / "loose", precision="bf16", **options, **loose)
    with pytest.raises(GateError, match="no bundle"):
        trtship.deploy(source, tmp_path / "tight", precision="bf16", **options, **tight)
    assert not (tmp_path / "tight").exists()


# What was typed


@pytest.mark.parametrize(("text", "seconds"), [("20m", 1200), ("90s", 90), ("1.5h", 5400), ("3", 180)])
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text, "--time-budget") == seconds


@pytest.mark.parametrize("text", ["", "0m", "-3m", "20 m", "soon", "1d"])
def test_other_durations_are_refused(text: str) -> None:
    with pytest.raises(SpecError, match=r"--time-budget .* is no time"):
        parse_duration(text, "--time-budget")


@pytest.mark.parametrize("text", ["fp4", "", ",", "mixed", "fp16;bf16"])
def test_other_candidates_are_refused(text: str) -> None:
    with pytest.raises(SpecError, match="--candidates"):
        parse_candidates(text)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"precision": "auto"}, "--precision auto needs a gate"),
        ({"precision": "auto", "max_drop": 1.0}, "--precision auto needs a gate"),
        ({"precision": "fp16", "candidates": "fp32"}, "--candidates does not go with --precision fp16"),
        ({"precision": "fp16", "time_budget": "1m"}, "--time-budget does not go with --precision fp16"),
        ({"precision": "auto", "max_rel_l2": 0.01, "candidates": "int8"}, "int8 needs inputs to calibrate on"),
        ({"precision": "auto", "max_rel_l2": 0.01, "io_dtype": "float16"}, "float16 does not go with --precision auto"),
        ({"precision": "auto", "max_rel_l2": -1.0}, "--max-rel-l2 -1 is no bound"),
        ({"precision": "auto", "max_rel_l2": float("nan")}, "--max-rel-l2 nan is no bound"),
        ({"precision": "auto", "max_rel_l2": float("inf")}, "--max-rel-l2 inf is no bound"),
        ({"precision": "auto", "min_cosine": 1.5}, "--min-cosine 1.5 is no bound"),
    ],
)
def test_what_does_not_go_together_is_told_before_any_work(tmp_path: Path, options: dict[str, Any], what: str) -> None:
    (tmp_path / "colours.py").write_text(COLOURS)
    with pytest.raises(SpecError, match=what):
        trtship.deploy(f"{tmp_path / 'colours.py'}:colours", tmp_path / "out" / "b", **options)
    assert not (tmp_path / "out").exists()


# What it costs, and which nodes matter


def test_the_estimate_knows_that_low_precision_is_cheaper(exported: Callable[[str], Path], tmp_path: Path) -> None:
    source = exported("swin")
    to_precision(source, tmp_path / "fp16.onnx", Precision.FP16)
    fp32, tf32 = (estimated_ms(source, batch=8, tf32=tf32) for tf32 in (False, True))
    fp16 = estimated_ms(tmp_path / "fp16.onnx", batch=8, tf32=True)
    assert 0 < fp16 < tf32 <= fp32
    assert estimated_ms(source, batch=16, tf32=False) > 1.5 * fp32


def test_a_products_cost_is_its_operations_where_it_is_large(tmp_path: Path) -> None:
    body = "(float[B, 4096] x) => (float[B, 4096] y) { a = MatMul(x, w) y = Relu(a) }"
    source = written(tmp_path / "a.onnx", body, w=np.zeros((4096, 4096), np.float32))
    costs = node_costs(source, batch=4096, tf32=True, kind="FLOAT16")
    assert sorted(costs) == ["a", "y"]
    assert costs["a"] == pytest.approx(2 * 4096**3 / 989e12 * 1e3)
    assert costs["y"] == pytest.approx(2 * 2 * 4096**2 / 3.35e12 * 1e3)


@pytest.fixture(scope="module")
def meter(exported: Callable[[str], Path]) -> Any:
    specs = [TensorSpec(name="input", shape=("B", 3, 56, 56))], [TensorSpec(name="logits", shape=("B", 10))]
    with TorchSession(small_model("swin"), inputs=tuple(specs[0]), outputs=tuple(specs[1])) as session:
        reference = make_reference(session, sizes={})
    with closing(Meter(exported("swin"), Precision.BF16, reference)) as found:
        yield found


def test_errors_of_single_parts_add_up_in_squares(meter: Meter) -> None:
    """What the search predicts with; measured on a real network, to a factor of two."""
    parts = sensitivities(meter, enough=1.0)
    assert tuple(name for part in parts for name in part.nodes) == meter.nodes
    predicted = sum(part.error**2 for part in parts) ** 0.5
    assert 0.5 < predicted / meter.error(meter.nodes) < 2
    assert meter.error(()) < 2**-18


def test_keeping_half_the_error_out_takes_fewer_than_all_nodes(meter: Meter) -> None:
    aim = meter.error(meter.nodes) / 2
    parts = sensitivities(meter, enough=aim)
    kept = least_kept(meter, parts, dict.fromkeys(meter.nodes, 1.0), aim=aim)
    assert 0 < len(kept) < len(meter.nodes)
    assert meter.error(set(meter.nodes) - set(kept)) <= aim
    assert least_kept(meter, parts, {}, aim=10.0) == ()


@settings(max_examples=10, deadline=None)
@given(dear=st.integers(0, 5))
def test_of_two_that_would_do_the_cheaper_is_kept(tmp_path_factory: pytest.TempPathFactory, dear: int) -> None:
    """Six equal nodes, one of which is dear: it is not the one to be kept."""
    folder = tmp_path_factory.mktemp("equal")
    body = (
        "(float[B, 8] x) => (float[B, 8] y) { "
        + " ".join(f"v{i} = Tanh(x) " for i in range(6))
        + "s = Concat<axis = 1>(v0, v1, v2, v3, v4, v5) y = ReduceSum<keepdims = 1>(s, axes) }"
    )
    body = body.replace("float[B, 8] y", "float[B, 1] y")
    source = written(folder / "a.onnx", body, axes=np.array([1]))
    x = random_inputs((TensorSpec(name="x", shape=("B", 8)),), {"B": 9})
    exact = 6 * np.tanh(x["x"]).sum(1, keepdims=True)
    with closing(Meter(source, Precision.BF16, Reference("B", {}, x, {"y": exact}))) as meter:
        parts = sensitivities(meter, enough=0.0)
        assert all(len(part.nodes) == 1 for part in parts)
        lost = {name: 100.0 if index == dear else 1.0 for index, name in enumerate(meter.nodes)}
        kept = least_kept(meter, parts, lost, aim=0.6 * meter.error(meter.nodes))
        assert kept
        assert meter.nodes[dear] not in kept


@pytest.mark.skipif(bool(list_gpus()), reason="there is a GPU here")
def test_layers_that_cannot_be_timed_are_told_why(tmp_path: Path) -> None:
    """Its process finds no GPU, and says so."""
    (tmp_path / "a.plan").write_bytes(b"no plan")
    spec = TensorSpec(name="x", shape=("B", 3), dtype="float32")
    plan = PlanFile(
        name="fp16",
        build=0,
        path=str(tmp_path / "a.plan"),
        inputs=(spec,),
        outputs=(spec,),
        family=None,
        tf32=True,
        dynamic=True,
    )
    with pytest.raises(DeviceError, match="the layers of fp16") as caught:
        layer_times_apart(plan, {"x": np.zeros((2, 3), np.float32)})
    assert "no GPU 0 here" in (caught.value.why or "")
