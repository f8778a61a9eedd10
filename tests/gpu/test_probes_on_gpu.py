"""The probes on real plans: right ones pass, and each defect that a plan can have is caught by its probe."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import trtship
from graphs import written
from trtship.bundle import Bundle
from trtship.bundle.runtime import open_session
from trtship.engine import plan_from_onnx
from trtship.family import choose_family
from trtship.session.onnxruntime import OnnxRuntimeSession
from trtship.session.tensorrt import TensorRTSession
from trtship.spec import Precision, ShapeRange, TensorSpec
from trtship.verify import Bound, Reference, Verdict, all_probes, attack
from trtship.verify.reference import make_reference

Deployed = Callable[[str], Path]
RANGES = {"B": ShapeRange(min=1, opt=8, max=32)}
INPUTS = (TensorSpec(name="x", shape=("B", 3, 16, 16)),)
BOUND = Bound(value=2e-2, source="fp16, generously", own=1e-2)
WEIGHT = np.random.default_rng(5).standard_normal((768, 64)).astype(np.float16)
BODY = """(float[B, 3, 16, 16] x) => (float[B, 64] y) {
    shape = Constant<value_ints = [-1, 768]>()
    flat = Reshape(x, shape)
    low = Cast<to = 10>(flat)
    z = MatMul(low, w)
    LEAK
    y = Cast<to = 1>(out)
}"""
NO_LEAK = "out = Identity(z)"
LEAKS = """
    first = Constant<value_ints = [0]>()
    mean = ReduceMean<keepdims = 1>(z, first)
    share = Mul(mean, part)
    out = Add(z, share)
"""


def opened(tmp_path: Path, leak: str) -> tuple[Callable[[], TensorRTSession], Reference]:
    """A plan of two profiles, and the reference of the same graph without its leak."""
    part = np.array(0.2, np.float16)
    right = written(tmp_path / "right.onnx", BODY.replace("LEAK", NO_LEAK), w=WEIGHT)
    tensors = {"w": WEIGHT, **({"part": part} if "part" in leak else {})}
    graph = written(tmp_path / "graph.onnx", BODY.replace("LEAK", leak), **tensors)
    family, _ = choose_family(None, tf32=True)
    plan = plan_from_onnx(graph, family=family, inputs=INPUTS, ranges=RANGES, single=(8,), precision=Precision.TF32)
    with OnnxRuntimeSession(right) as session:
        session.inputs = INPUTS
        reference = make_reference(session, sizes={})
    outputs = (TensorSpec(name="y", shape=("B", 64)),)
    return lambda: TensorRTSession(plan.data, family, inputs=INPUTS, outputs=outputs), reference


def verdicts_of(open_session: Callable[[], Any], reference: Reference) -> dict[str, Verdict]:
    return {v.gate: v for v in attack(open_session, reference, subject="plan", ranges=RANGES, bound=BOUND)}


@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16", "bf16"])
def test_swin_t_passes_every_probe(
    swin_t: Deployed, precision: str, record_property: Callable[[str, object], None]
) -> None:
    found = {v.gate: v for v in Bundle.open(swin_t(precision)).manifest.verdicts if v.subject == "plan"}
    figures = {gate: (v.worst, v.bound.value) for gate, v in found.items() if v.bound is not None}
    record_property("probes", {gate: {"worst": worst, "bound": bound} for gate, (worst, bound) in figures.items()})
    assert {gate: v.state for gate, v in found.items()} == dict.fromkeys(
        ("rel_l2", *(probe.name for probe in all_probes() if not probe.of_sizes)), "passed"
    )


def test_a_plan_without_defects_passes(tmp_path: Path) -> None:
    verdicts = verdicts_of(*opened(tmp_path, NO_LEAK))
    assert {gate: v.state for gate, v in verdicts.items()} == {p.name: "passed" for p in all_probes() if not p.of_sizes}


def test_a_plan_whose_rows_leak_fails_the_changed_row(tmp_path: Path) -> None:
    verdicts = verdicts_of(*opened(tmp_path, LEAKS))
    assert verdicts["changed_row"].state == "failed"
    assert verdicts["repeated"].state == "passed"


class Unwritten:
    """A context that leaves the last element of every output as it was. (It waits for the GPU, and so cannot be
    captured in a CUDA graph: the session says so, and goes on without.)"""

    def __init__(self, context: Any, cuda: Any) -> None:
        self._context, self._cuda, self._shapes = context, cuda, {}  # type: ignore[var-annotated]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def set_shapes(self, *arguments: Any) -> dict[str, tuple[int, ...]]:
        self._shapes = self._context.set_shapes(*arguments)
        return dict(self._shapes)

    def execute(self, addresses: Mapping[str, int], stream: int) -> None:
        last = {n: addresses[n] + 4 * (int(np.prod(shape)) - 1) for n, shape in self._shapes.items()}
        kept = {name: np.empty(1, np.float32) for name in last}
        for name, address in last.items():
            self._cuda.to_host(kept[name].ctypes.data, address, 4, stream)
        self._context.execute(addresses, stream)
        for name, address in last.items():
            self._cuda.to_device(address, kept[name].ctypes.data, 4, stream)
        self._cuda.synchronize(stream)


def unwritten(session: TensorRTSession) -> TensorRTSession:
    """The session, whose contexts from now on are such."""
    create = session._engine.create_context

    def faulty(profile: int, stream: int, **options: Any) -> Any:
        return Unwritten(create(profile, stream, **options), session._cuda)

    session._runs.trim()
    session._engine.create_context = faulty  # type: ignore[method-assign]
    return session


def test_an_output_that_is_not_written_whole_is_seen_through_the_poison(tmp_path: Path) -> None:
    open_session, reference = opened(tmp_path, NO_LEAK)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        verdict = verdicts_of(lambda: unwritten(open_session()), reference)["poisoned_outputs"]
    assert verdict.state == "failed"
    assert "NaN or Inf in y" in verdict.reason


def test_poison_is_what_torch_tensors_get_too(tmp_path: Path) -> None:
    import torch

    open_session, reference = opened(tmp_path, NO_LEAK)
    with open_session() as session:
        session.poison = True
        x = torch.from_numpy(reference.at(8)[0]["x"]).cuda()
        for _ in range(4):  # eagerly, by way of the session's buffers, and in place
            assert torch.isfinite(session.infer({"x": x})["y"]).all()
        unwritten(session)
        assert torch.isnan(session.infer({"x": x})["y"][-1, -1])


def test_a_stale_plan_of_other_weights_is_not_the_model(swin_t: Deployed, tmp_path: Path) -> None:
    """The outputs that the bundle says are the original's are another model's: every row is off."""
    copy = tmp_path / "stale.trtship"
    shutil.copytree(swin_t("fp16"), copy)
    bundle = Bundle.open(copy)
    reference = bundle.reference()
    other = {name: np.roll(a, 1, axis=1) for name, a in reference.outputs.items()}
    session = open_session(bundle, runtime="tensorrt").session
    with session:
        from trtship.verify import compare

        verdict = compare(
            session,
            msgspec.structs.replace(reference, outputs=other),
            subject="plan",
            batches=[8],
            bound=bundle.manifest.bounds["plan"],
        )
    assert verdict.state == "failed"


def test_verify_against_fp64_and_the_users_own_gates(swin_t: Deployed) -> None:
    verdicts = trtship.verify_bundle(swin_t("fp16"), fp64=True, min_cosine=0.9999, record=False)
    plan = {v.gate: v for v in verdicts if v.subject == "plan"}
    assert (plan["rel_l2_fp64"].state, plan["cosine"].state) == ("passed", "passed")
