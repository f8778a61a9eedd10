"""Flat pictures, and outputs that are exactly zero: rounding passes there, and nothing else does."""

from __future__ import annotations

import warnings
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from graphs import written
from trtship.graphs import load_graph, rounding_bound
from trtship.graphs.noise import fp32_noise
from trtship.graphs.rounding import CEILING, QUANTILE
from trtship.graphs.small_rows import RowNoise, judge, row_sizes
from trtship.measure import HUGE, measure
from trtship.passes import emulate_low, to_precision
from trtship.passes.proof import Reference as Proof
from trtship.session.onnxruntime import OnnxRuntimeSession
from trtship.session.torch import TorchSession
from trtship.spec import Precision, TensorSpec
from trtship.verify import Bound, Reference
from trtship.verify.attack import attack
from trtship.verify.bounds import derive_bounds
from trtship.verify.compare import compare
from trtship.verify.probes.edge_inputs import EdgeInputs
from trtship.verify.reference import make_reference
from trtship.verify.verdict import Verdict

FP32, FP16, BF16 = Precision.FP32, Precision.FP16, Precision.BF16


class Contrast(nn.Module):
    """Local contrast: exactly 0 where the picture is flat."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.d = nn.Conv2d(3, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.d(x).view(-1, 8, 4, 4, 4, 4)
        return (y - y.mean((3, 5), keepdim=True)).square().mean((2, 3, 4, 5))


class Style(nn.Module):
    """Convolutions and a norm that subtracts the mean of the picture."""

    def __init__(self, norm: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.o = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 2, 1), nn.Conv2d(8, 3, 1)
        self.a.padding_mode = self.b.padding_mode = "reflect"
        self.a._reversed_padding_repeated_twice = self.b._reversed_padding_repeated_twice = [1, 1, 1, 1]
        made = {"instance": nn.InstanceNorm2d(8, affine=True), "group": nn.GroupNorm(8, 8)}
        self.n = made[norm]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.o(self.n(self.b(self.n(self.a(x)).relu())).relu())


class Edges(nn.Module):
    """Edge filters, whose weights add up to 0, and their energy: next to 0 where the picture is flat."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        sobel = torch.tensor([[1.0, 2, 1], [0, 0, 0], [-1, -2, -1]]) / 3
        drawn = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
        kernel = {"sobel": sobel, "drawn": drawn - drawn.mean()}[kind]
        self.register_buffer("weight", torch.stack([kernel, kernel.T])[:, None].repeat(1, 3, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.conv2d(x * 0.7 + 0.1, self.weight)


MODELS = {
    "sobel": lambda: Edges("sobel"),
    "filters of sum 0": lambda: Edges("drawn"),
    "contrast": Contrast,
    "instance norm": lambda: Style("instance"),
    "group norm": lambda: Style("group"),
}


class Made(msgspec.Struct):
    """A model's graph in a precision as it runs, its reference, and the bounds of both graphs."""

    fp32: Path
    low: Path
    reference: Reference
    bounds: dict[str, Bound]

    def verdicts(self, precision: Precision, bounds: dict[str, Bound] | None = None) -> list[Verdict]:
        """The comparison and the probe of edges, of the fp32 graph and of the low one."""
        found = []
        for subject, path in (("graph fp32", self.fp32), (f"graph {precision.value}", self.low)):
            bound = (bounds or self.bounds)[subject]
            with OnnxRuntimeSession(path, threads=1) as session:
                found.append(compare(session, self.reference, subject=subject, batches=[1, 4], bound=bound))
                found += attack(
                    lambda: OnnxRuntimeSession(path, threads=1),  # noqa: B023 - called before the next turn
                    self.reference,
                    subject=subject,
                    ranges={},
                    batches=[4],
                    bound=bound,
                    session=session,
                    probes=[EdgeInputs()],
                )
        return found


def make(name: str, precision: Precision, folder: Path) -> Made:
    module = MODELS[name]().eval()
    batch = torch.export.Dim("B")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (torch.randn(2, 3, 16, 16),),
            str(folder / "a.onnx"),
            dynamo=True,
            dynamic_shapes=({0: batch},),
            input_names=["x"],
            output_names=["y"],
            verbose=False,
        )
    graph, typed, low = folder / "a.onnx", folder / "b.onnx", folder / "c.onnx"
    with OnnxRuntimeSession(graph) as session:
        outputs = tuple(TensorSpec(name=s.name, shape=s.shape, dtype=s.dtype) for s in session.outputs)
    inputs = (TensorSpec(name="x", shape=("B", 3, 16, 16)),)
    reference = make_reference(TorchSession(module, inputs=inputs, outputs=outputs), sizes={})
    to_precision(graph, typed, precision)
    emulate_low(typed, low)
    counted = rounding_bound(load_graph(graph), FP32)
    path = rounding_bound(load_graph(typed), precision).bound / QUANTILE
    bounds = derive_bounds(typed, precision, reference, counted=counted, path=path, graph=graph)
    return Made(graph, low, reference, bounds)


@pytest.mark.parametrize("precision", [FP32, BF16])
@pytest.mark.parametrize("name", ["contrast", "instance norm"])
def test_flat_pictures_pass_in_every_precision(name: str, precision: Precision, tmp_path: Path) -> None:
    made = make(name, precision, tmp_path)
    assert [v.reason for v in made.verdicts(precision) if v.state != "passed"] == []


@pytest.mark.parametrize("name", MODELS)
def test_flat_pictures_pass_in_fp16_and_make_no_ordinary_rows_bound_wider(name: str, tmp_path: Path) -> None:
    made = make(name, FP16, tmp_path)
    assert [v.reason for v in made.verdicts(FP16) if v.state != "passed"] == []
    assert made.bounds["graph fp16"].value < 0.01
    assert made.bounds["graph fp32"].value < 1e-5
    assert made.bounds["graph fp16"].floors == {}


def test_what_is_wrong_by_a_thousandth_of_the_usual_on_a_flat_picture_fails(tmp_path: Path) -> None:
    """The right graph, and a reference that says a thousandth of the usual where the right answer is 0."""
    made = make("contrast", FP16, tmp_path)
    edges = made.reference.edges
    assert edges is not None
    (name,) = edges.outputs
    usual = row_sizes(made.reference.outputs, whole=True)[0][name]
    flat = edges.names.index("min")
    assert np.abs(edges.outputs[name][flat]).max() < 1e-9
    edges.outputs[name][flat] += 1e-3 * usual
    failed = {(v.subject, v.gate) for v in made.verdicts(FP16) if v.state == "failed"}
    assert failed == {("graph fp32", "edge_inputs"), ("graph fp16", "edge_inputs")}


def test_a_small_output_that_is_right_is_held_to_its_own_size() -> None:
    """A row of 1e-3, right to 1e-6, among rows of 1: 0 in its place is no rounding."""
    judged = judge(RowNoise({"y": 1e-6}, {"y": 1e-3}), {"y": 1e-3}, {"y": 1.0})
    assert judged.small == {}
    assert judged.relative == pytest.approx(1e-3)
    assert measure(np.full((1, 4), 1e-3), np.zeros((1, 4)), output="y", sizes={}).rel_l2 == 1.0


def test_a_row_that_is_less_than_its_noise_is_held_to_the_noise() -> None:
    judged = judge(RowNoise({"y": 1e-6}, {"y": 1e-9}), {"y": 0.0}, {"y": 1.0})
    assert judged.small == {"y": 1e-6}
    assert judged.relative == pytest.approx(1e-6)


def test_noise_that_is_large_against_the_usual_output_allows_for_nothing() -> None:
    judged = judge(RowNoise({"y": 0.03}, {"y": 1e-9}), {"y": 0.0}, {"y": 1.0})
    assert QUANTILE * 0.03 > CEILING
    assert judged.small == {}
    assert judged.relative > 1e6


def test_a_zero_without_noise_must_be_zero() -> None:
    assert judge(RowNoise({"y": 0.0}, {"y": 0.0}), {"y": 0.0}, {"y": 1.0}).small == {}
    assert measure(np.zeros((1, 4)), np.full((1, 4), 1e-9), output="y", sizes={}).rel_l2 == HUGE


def test_a_floor_changes_nothing_of_a_row_that_is_larger() -> None:
    right, wrong = np.ones((2, 4)), np.full((2, 4), 1.01)
    with_floor = measure(right, wrong, output="y", sizes={}, floor=0.5)
    assert with_floor == measure(right, wrong, output="y", sizes={})


def test_a_floor_is_what_a_smaller_row_counts_as() -> None:
    found = measure(np.zeros((1, 4)), np.full((1, 4), 1e-3), output="y", sizes={}, floor=0.5)
    assert found.rel_l2 == pytest.approx(2e-3)
    assert found.cosine == pytest.approx(1 - 2e-6)


def test_the_users_bound_leaves_what_small_rows_may_be_off_by() -> None:
    bound = Bound(value=2e-3, source="a test", own=1e-3, floors={"y": 0.1}, row_floors={"min": {"y": 0.4}})
    wider = bound.replaced(1e-2, "--max-rel-l2")
    assert (wider.value, wider.own) == (1e-2, 1e-3)
    assert wider.value * wider.floors["y"] == pytest.approx(bound.value * bound.floors["y"])
    assert wider.value * wider.on("min")["y"] == pytest.approx(bound.value * 0.4)
    assert not bound.covers(msgspec.structs.replace(bound, floors={"y": 0.2}))


CENTERED = """(float[B, 16] x) => (float[B, 8] y) { y = MatMul(x, w) }"""


def test_a_rewrite_whose_output_is_rounding_alone_is_the_same_and_another_is_not(tmp_path: Path) -> None:
    """Weights of sum 0: on constant rows, which the proof has, the output is what rounding leaves."""
    weight = np.random.default_rng(0).standard_normal((16, 8)).astype(np.float32)
    weight -= weight.mean(0)
    order = np.random.default_rng(1).permutation(16)
    before = written(tmp_path / "a.onnx", CENTERED, w=weight)
    body = "(float[B, 16] x) => (float[B, 8] y) { p = Gather<axis = 1>(x, order) y = MatMul(p, w) }"
    same = written(tmp_path / "b.onnx", body, w=weight[order], order=order)
    other = written(tmp_path / "c.onnx", body, w=weight[order] + 1e-4, order=order)
    proof = Proof(before)
    assert proof.verdict(same).same
    assert not proof.verdict(other).same


def test_the_noise_of_an_fp32_graph_tells_outputs_that_are_next_to_nothing(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).standard_normal((16, 8)).astype(np.float32)
    graph = written(tmp_path / "a.onnx", CENTERED, w=weight - weight.mean(0))
    x = np.concatenate([np.random.default_rng(2).standard_normal((3, 16)), np.full((1, 16), 3.3)]).astype(np.float32)
    with OnnxRuntimeSession(graph) as session:
        outputs = session.infer({"x": x})
    noise = fp32_noise(graph, {"x": x}, outputs)
    assert noise.gain < 100
    assert 0 < noise.deviations["y"] < 1e-4
    assert noise.floors(1e-6)["y"] == pytest.approx(QUANTILE * noise.deviations["y"] / 1e-6)
