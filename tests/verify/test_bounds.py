"""Derived bounds: real models are within them, planted bugs are not, and a network's own gain is no bug."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

import trtship
from graphs import SMALL, model_of, pictures, small_model, written
from trtship.bundle import Bundle
from trtship.errors import ExportMismatchError, GateError
from trtship.graphs import load_graph, rounding_bound
from trtship.graphs.noise import fp32_noise
from trtship.graphs.rounding import QUANTILE
from trtship.passes import emulate_low, to_precision
from trtship.session.onnxruntime import OnnxRuntimeSession
from trtship.session.torch import TorchSession
from trtship.spec import Precision, TensorSpec
from trtship.verify import Bound, Reference
from trtship.verify.bounds import CEILING, derive_bounds
from trtship.verify.noise import measured_noise
from trtship.verify.reference import make_reference

FP32, FP16, BF16 = Precision.FP32, Precision.FP16, Precision.BF16
Plant = Callable[[torch.nn.Module], None]


def reference_of(name: str, plant: Plant = lambda model: None) -> Reference:
    module = small_model(name)
    with torch.no_grad():
        plant(module)
    inputs = (TensorSpec(name="input", shape=("B", *pictures(name, 1).shape[1:])),)
    outputs = (TensorSpec(name="logits", shape=("B", 10)),)
    exact = (TensorSpec(name="logits", shape=("B", 10), dtype="float64"),)
    double = TorchSession(copy.deepcopy(module), inputs=inputs, outputs=exact, dtype="float64")
    return make_reference(TorchSession(module, inputs=inputs, outputs=outputs), sizes={}, exact=double)


def derived(graph: Path, typed: Path, precision: Precision, reference: Reference) -> dict[str, Bound]:
    return derive_bounds(
        typed,
        precision,
        reference,
        counted=rounding_bound(load_graph(graph), FP32),
        path=rounding_bound(load_graph(typed), precision).bound / QUANTILE,
    )


def worst_error(typed: Path, precision: Precision, reference: Reference, folder: Path) -> float:
    """Of the reference's rows through onnxruntime, every tensor rounded to the precision."""
    if precision.graph_dtype != "float32":
        emulate_low(typed, folder / "emulated.onnx")
        typed = folder / "emulated.onnx"
    with OnnxRuntimeSession(typed, threads=1) as session:
        found, expected = session.infer(reference.inputs)["logits"], reference.outputs["logits"]
    return float((np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)).max())


@pytest.mark.parametrize(("name", "precision"), zip(SMALL, [BF16, FP16, FP32], strict=True))
def test_real_models_are_within_their_bound_and_use_a_good_part_of_it(
    name: str, precision: Precision, exported: Callable[[str], Path], tmp_path: Path
) -> None:
    reference = reference_of(name)
    to_precision(exported(name), tmp_path / "typed.onnx", precision)
    bound = derived(exported(name), tmp_path / "typed.onnx", precision, reference)["plan"]
    error = worst_error(tmp_path / "typed.onnx", precision, reference, tmp_path)
    assert bound.value / (100 if precision is FP32 else 12) < error < bound.value
    assert bound.own is not None
    assert error < bound.own < bound.value


def swap_heads(model: torch.nn.Module) -> None:
    table = model.layers[0].blocks[0].attn.relative_position_bias_table  # type: ignore[union-attr,index]
    table.copy_(table.flip(1))


def drop_mask(model: torch.nn.Module) -> None:
    model.layers[0].blocks[1].attn_mask.zero_()  # type: ignore[union-attr,index]


def drop_bias(model: torch.nn.Module) -> None:
    model.layers[0].blocks[0].mlp.fc1.bias.zero_()  # type: ignore[union-attr,index]


def drop_last_bias(model: torch.nn.Module) -> None:
    model.layers[1].blocks[1].mlp.fc2.bias.zero_()  # type: ignore[union-attr,index]


@pytest.fixture(scope="module")
def swin_in_bf16(exported: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """The right graph, and its bound."""
    typed = tmp_path_factory.mktemp("swin") / "typed.onnx"
    to_precision(exported("swin"), typed, BF16)
    return typed, derived(exported("swin"), typed, BF16, reference_of("swin"))["plan"].value


@pytest.mark.parametrize("plant", [swap_heads, drop_mask, drop_bias, drop_last_bias])
def test_planted_bugs_are_outside_the_bound_of_bf16(
    plant: Plant, swin_in_bf16: tuple[Path, float], tmp_path: Path
) -> None:
    """The graph is the right one, and the reference that of a model with the bug: what is compared is the same."""
    typed, bound = swin_in_bf16
    assert worst_error(typed, BF16, reference_of("swin", plant), tmp_path) > bound


def test_counting_roundings_does_not_see_all_of_these(swin_in_bf16: tuple[Path, float], tmp_path: Path) -> None:
    """Which is why their noise is measured."""
    typed, bound = swin_in_bf16
    counted = rounding_bound(load_graph(typed), BF16).bound
    assert bound < worst_error(typed, BF16, reference_of("swin", drop_mask), tmp_path) < counted


def test_a_wrong_graph_has_no_wider_a_bound(exported: Callable[[str], Path], tmp_path: Path) -> None:
    """Two rows of every weight exchanged: another network, of about the same noise."""
    reference = reference_of("swin")
    to_precision(exported("swin"), tmp_path / "right.onnx", FP16)
    model = load_graph(tmp_path / "right.onnx")
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and len(tensor.shape) == 2 and tensor.shape[0] > 8:
            array = tensor.numpy()
            value.const_value = ir.Tensor(np.concatenate([array[1::-1], array[2:]]), name=value.name)
    ir.save(model, tmp_path / "wrong.onnx")
    right, wrong = (measured_noise(tmp_path / f"{n}.onnx", FP16, reference).worst for n in ("right", "wrong"))
    assert wrong == pytest.approx(right, rel=0.6)
    assert worst_error(tmp_path / "wrong.onnx", FP16, reference, tmp_path) > 20 * QUANTILE * wrong


def small(body: str, folder: Path, **tensors: np.ndarray) -> tuple[Path, Reference]:
    onnx.save(model_of(body, **tensors), folder / "graph.onnx")
    with OnnxRuntimeSession(folder / "graph.onnx") as session:
        return folder / "graph.onnx", make_reference(session, sizes={})


W = np.random.default_rng(3).standard_normal((64, 8)).astype(np.float32)


def test_the_noise_of_one_addition_is_one_rounding(tmp_path: Path) -> None:
    """0.425 u for each element; their root of the sum of squares is that of the row's own."""
    graph, reference = small("(float16[B, 64] x) => (float16[B, 64] y) { y = Add(x, x) }", tmp_path)
    noise = measured_noise(graph, FP16, reference)
    assert np.median(noise.rows) == pytest.approx(0.425 * 2**-11, rel=0.25)


def test_numbers_that_are_exact_are_noisy_too(tmp_path: Path) -> None:
    """All ones: nothing is rounded off in fp16; the next kernel, or the next number, may round."""
    graph, reference = small("(float16[B, 64] x) => (float16[B, 64] y) { y = Add(x, x) }", tmp_path)
    ones = Reference("B", {}, {"x": np.ones((9, 64), np.float16)}, reference.outputs)
    assert measured_noise(graph, FP16, ones).worst > 0


def test_a_mask_of_infinity_makes_no_noise_and_no_nan(tmp_path: Path) -> None:
    mask = np.where(np.arange(64) % 2, 0, -np.inf).astype(np.float16)
    body = """(float16[B, 64] x) => (float16[B, 64] y) {
        a = Add(x, mask) c = Cast<to = 1>(a) s = Softmax(c) y = Cast<to = 10>(s)
    }"""
    graph, reference = small(body, tmp_path, mask=mask)
    noise = measured_noise(graph, FP16, reference)
    assert len(noise.rows) == 9
    assert 0 < noise.worst < 0.01


def test_numbers_beyond_fp16_are_measured_and_not_lost(tmp_path: Path) -> None:
    """1e3 * 1e3 is infinite in fp16. That is a fault to be found, and not noise that allows for it."""
    body = "(float16[B, 64] x) => (float16[B, 64] y) { a = Mul(x, k) b = Mul(a, k) c = Div(b, k) y = Div(c, k) }"
    graph, reference = small(body, tmp_path, k=np.array(1000, np.float16))
    assert 0 < measured_noise(graph, FP16, reference).worst < 0.01


def gain_of(graph: Path, reference: Reference) -> float:
    with OnnxRuntimeSession(graph) as session:
        return fp32_noise(graph, reference.inputs, session.infer(reference.inputs)).gain


def test_the_gain_of_a_difference_of_large_numbers_is_measured(tmp_path: Path) -> None:
    offset = W - W.mean(0)
    plain, reference = small("(float[B, 64] x) => (float[B, 8] y) { y = MatMul(x, w) }", tmp_path, w=offset)
    assert 0.1 < gain_of(plain, reference) < 3
    body = "(float[B, 64] x) => (float[B, 8] y) { a = Add(x, k) y = MatMul(a, w) }"
    large, reference = small(body, tmp_path, w=offset, k=np.array(1000, np.float32))
    assert 100 < gain_of(large, reference) < 10_000


GAIN = """
import torch

class Gain(torch.nn.Module):
    '''What it says is a thousandth of what it adds up: products whose terms cancel.'''
    trtship_inputs = ["input=Bx3x16x16"]

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(768, 64)
        self.second = torch.nn.Linear(64, 10)
        with torch.no_grad():
            self.first.weight -= self.first.weight.mean(1, keepdim=True)

    def forward(self, input):
        return self.second(torch.relu(self.first(input.flatten(1) + 1000.0)))

def gain():
    torch.manual_seed(0)
    return Gain()
"""


def test_a_network_of_large_gain_is_deployed_and_its_bound_says_why(tmp_path: Path) -> None:
    (tmp_path / "gain.py").write_text(GAIN)
    result = trtship.deploy(f"{tmp_path / 'gain.py'}:gain", tmp_path / "b", precision="fp32", batch="1:2:4")
    m = Bundle.open(result.bundle).manifest
    bound = m.bounds["graph fp32"]
    verdict = next(v for v in m.verdicts if (v.subject, v.gate) == ("graph fp32", "rel_l2"))
    assert verdict.state == "passed"
    counted = rounding_bound(load_graph(tmp_path / "b" / "model.onnx"), FP32).bound
    assert verdict.worst is not None
    assert 2 * counted < verdict.worst < bound.value < CEILING
    assert "gain" in bound.source


def test_the_same_network_is_no_network_for_fp16_and_that_is_said(tmp_path: Path) -> None:
    """Its rounding alone moves the outputs by more than a tenth: fp16 has 0.5 between one number and the next there."""
    (tmp_path / "gain.py").write_text(GAIN)
    with pytest.raises(GateError, match="graph fp16, rel_l2") as caught:
        trtship.deploy(f"{tmp_path / 'gain.py'}:gain", tmp_path / "b", precision="fp16", batch="1:2:4")
    evidence = caught.value.evidence
    assert isinstance(evidence, tuple)
    low = next(v for v in evidence if (v["subject"], v["gate"]) == ("graph fp16", "rel_l2"))
    assert "rounding alone may move it further" in low["bound"]["source"]


def test_a_large_gain_hides_no_bug_of_the_export(tmp_path: Path) -> None:
    frozen = GAIN.replace("self.second(torch", "input.shape[0] * self.second(torch").replace(
        "input.shape[0] *", "float(int(input.shape[0])) / input.new_ones(input.shape[0]).sum() *"
    )
    (tmp_path / "gain.py").write_text(frozen)
    with pytest.raises(ExportMismatchError):
        trtship.deploy(
            f"{tmp_path / 'gain.py'}:gain", tmp_path / "b", precision="fp32", batch="1:2:4", exporter="torchscript"
        )


def test_one_constant_that_an_operator_reads_twice_is_noisy_in_both_places(tmp_path: Path) -> None:
    """simplification makes one of equal constants: a LayerNorm's scale and shift, say."""
    text = "(float16[B, 4] x) => (float16[B, 4] y) { y = LayerNormalization(x, w, w) }"
    written(tmp_path / "a.onnx", text, w=np.arange(1, 5, dtype=np.float16))
    x = np.random.default_rng(0).standard_normal((9, 4), dtype=np.float32)
    reference = Reference(batch="B", sizes={}, inputs={"x": x}, outputs={"y": x})
    assert 0 < measured_noise(tmp_path / "a.onnx", FP16, reference).worst < 2**-9
