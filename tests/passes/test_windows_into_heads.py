from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from swins import SWINS, Swin, export, make, seeded

from graphs import ops, written
from trtship.graphs import load_graph
from trtship.passes.batches import Batches
from trtship.passes.proof import Reference
from trtship.passes.rewrite import RewriteReport
from trtship.passes.windows_into_heads import WindowsIntoHeads
from trtship.session.onnxruntime import OnnxRuntimeSession

PASS = WindowsIntoHeads()


def proved(source: Path, target: Path) -> RewriteReport:
    """Run the pass, and hold its result against the graph that it came from."""
    report = PASS.apply(source, target)
    verdict = Reference(source).verdict(target)
    assert verdict.same, verdict.why
    return report


def attentions(path: Path) -> list[tuple[int, ...]]:
    """The constant's shape of every attention of the form MatMul, Add(constant), Softmax, MatMul."""
    model = load_graph(path)
    found = []
    for node in model.graph:
        if node.op_type == "Softmax":
            add = node.inputs[0].producer()
            constant = [value for value in add.inputs if value.const_value is not None]
            (scores,) = (value for value in add.inputs if value.const_value is None)
            assert (add.op_type, scores.producer().op_type) == ("Add", "MatMul")
            assert [user.op_type for user in node.outputs[0].consumers()] == ["MatMul"]
            found.append(tuple(constant[0].shape))
    return found


def products_in_pieces(path: Path) -> int:
    return sum(shape[0] != 1 for shape in attentions(path))


@pytest.mark.parametrize("simple", [False, True], ids=["as exported", "simplified"])
@pytest.mark.parametrize("name", SWINS)
def test_every_attention_of_every_implementation(
    name: str, simple: bool, swin: Callable[..., Path], tmp_path: Path
) -> None:
    source, target = swin(name, simple=simple), tmp_path / "out.onnx"
    report = proved(source, target)
    assert (report.matches, report.rewritten, report.near_misses) == (4, 4, ())
    module, size = make(name)
    x = torch.randn(5, 3, size, size, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = module(x)
    with OnnxRuntimeSession(target) as session:
        assert session.inputs[0].shape[0] == "B"
        found = session.infer({"input": x})["logits"]
    assert float((found - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.parametrize("name", SWINS)
def test_one_constant_an_attention_for_all_windows_and_heads(
    name: str, swin: Callable[..., Path], tmp_path: Path
) -> None:
    PASS.apply(swin(name, simple=True), tmp_path / "out.onnx")
    side = make(name)[1] // 4
    window = {32: 4, 56: 7, 48: 7, 64: 8}[make(name)[1]]
    windows = [(-(-size // window)) ** 2 for size in (side, side // 2)]
    assert attentions(tmp_path / "out.onnx") == [
        (1, count * heads, window**2, window**2) for count, heads in zip(windows, (2, 4), strict=True) for _ in range(2)
    ]


@pytest.mark.parametrize("name", ["swin", "swinv2"])
def test_the_dynamo_exporters_graphs(name: str, exported: Callable[[str], Path], tmp_path: Path) -> None:
    report = proved(exported(name), tmp_path / "out.onnx")
    assert (report.rewritten, report.near_misses) == (4, ())
    assert all(shape[0] == 1 for shape in attentions(tmp_path / "out.onnx"))


@pytest.mark.parametrize("name", ["timm", "torchvision", "transformers", "own"])
def test_the_scale_moves_into_the_weights(name: str, swin: Callable[..., Path], tmp_path: Path) -> None:
    source = swin(name, simple=True)
    PASS.apply(source, tmp_path / "out.onnx")
    assert "Mul" in ops(source)
    assert "Mul" not in ops(tmp_path / "out.onnx")


def test_the_cosine_scale_multiplies_q_and_not_the_scores(swin: Callable[..., Path], tmp_path: Path) -> None:
    PASS.apply(swin("own V2", simple=True), tmp_path / "out.onnx")
    model = load_graph(tmp_path / "out.onnx")
    known = Batches(model)
    scales = [node for node in model.graph if node.op_type == "Mul"]
    assert [known.shape(node.outputs[0])[-1] for node in scales] == [8] * 4  # type: ignore[index]


def test_a_static_batch_stays_static(tmp_path: Path) -> None:
    source = export(seeded(Swin()), 32, tmp_path / "a.onnx", batch=3, dynamic=False)
    report = proved(source, tmp_path / "b.onnx")
    assert (report.rewritten, report.near_misses) == (4, ())
    assert attentions(tmp_path / "b.onnx")[0] == (1, 8, 16, 16)
    model = load_graph(tmp_path / "b.onnx")
    new = [node for node in model.graph if node.op_type == "Reshape" and node.metadata_props.get("trtship.pass")]
    targets = [node.inputs[1].const_value.numpy().tolist() for node in new]
    assert targets
    assert all(-1 not in target and target[0] % 3 == 0 for target in targets)


def test_a_second_run_finds_nothing(swin: Callable[..., Path], tmp_path: Path) -> None:
    PASS.apply(swin("timm"), tmp_path / "a.onnx")
    report = PASS.apply(tmp_path / "a.onnx", tmp_path / "b.onnx")
    assert report == RewriteReport(
        matches=0, rewritten=0, near_misses=(), nodes_before=report.nodes_before, nodes_after=report.nodes_before
    )


def test_new_nodes_name_their_pass(swin: Callable[..., Path], tmp_path: Path) -> None:
    before = {node.name for node in load_graph(swin("timm")).graph}
    PASS.apply(swin("timm"), tmp_path / "a.onnx")
    new = [node for node in load_graph(tmp_path / "a.onnx").graph if node.name not in before]
    assert new
    assert {node.metadata_props.get("trtship.pass") for node in new} == {"windows into heads"}


# By hand: 2 windows of 3 tokens, 2 heads of 4 channels. `middle` makes b, [X, 2, 3, 3], of the product s.
SHAPES = {"to_windows": [-1, 3, 8], "parts": [-1, 3, 3, 2, 4], "images": [-1, 2, 2, 3, 3], "joined": [-1, 2, 3, 3]}
FRONT = """{ a = Reshape(x, to_windows) f = MatMul(a, w) g = Reshape(f, parts) t = Transpose<perm = [2, 0, 3, 1, 4]>(g)
    q = Gather<axis = 0>(t, zero) k = Gather<axis = 0>(t, one) v = Gather<axis = 0>(t, two)
    kt = Transpose<perm = [0, 1, 3, 2]>(k) s = MatMul(q, kt) """
BACK = "p = Softmax<axis = -1>(b) c = MatMul(p, v) ct = Transpose<perm = [0, 2, 1, 3]>(c) y = Reshape(ct, to_windows) }"
MASKED = "e = Add(s, bias) h = Reshape(e, images) i = Add(h, mask) b = Reshape(i, joined) "


def by_hand(path: Path, middle: str, *, batch: str = "B", back: str = BACK, extra: str = "", **more: Any) -> Path:
    rng = np.random.default_rng(0)
    tensors = {name: np.array(shape) for name, shape in SHAPES.items()}
    tensors |= {name: np.array(index) for index, name in enumerate(("zero", "one", "two"))}
    tensors |= {
        "w": rng.standard_normal((8, 24)).astype(np.float32) * 0.35,
        "bias": rng.standard_normal((1, 2, 3, 3)).astype(np.float32),
        "mask": -5 * rng.integers(0, 2, (1, 2, 1, 3, 3)).astype(np.float32),
    }
    head = f"(float[{batch}, 2, 3, 8] x) => (float[N, 3, 8] y{extra}) "
    return written(path, head + FRONT + middle + back, **{**tensors, **more})


def test_the_form_by_hand_is_taken(tmp_path: Path) -> None:
    report = proved(by_hand(tmp_path / "a.onnx", MASKED), tmp_path / "b.onnx")
    assert (report.rewritten, report.near_misses) == (1, ())


def array(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


MORE_FORMS = {
    "a scale after the bias": "e = Add(s, bias) b = Mul(e, n)",
    "a division": "e = Div(s, n) b = Add(bias, e)",
    "a scale a head": "e = Mul(s, heads) b = Add(e, bias)",
    "two masks": "e = Add(s, bias) h = Reshape(e, images) i = Add(h, mask) j = Add(mask, i) b = Reshape(j, joined)",
    "a mask without a bias": "h = Reshape(s, images) i = Add(h, mask) b = Reshape(i, joined)",
    "a mask worked out from shapes": """xs = Shape<start = 0, end = 1>(x) ones = Constant<value_ints = [1, 1, 1, 1]>()
        full = Concat<axis = 0>(xs, ones) m = Expand(mask, full) ms = Constant<value_ints = [-1, 1, 3, 3]>()
        r = Reshape(m, ms) z = Add(r, bias) b = Add(s, z)""",
}


@pytest.mark.parametrize("middle", MORE_FORMS.values(), ids=list(MORE_FORMS))
def test_other_forms_of_the_same_thing(middle: str, tmp_path: Path) -> None:
    source = by_hand(tmp_path / "a.onnx", middle, n=np.float32(0.7), heads=array(2, 1, 1))
    report = proved(source, tmp_path / "b.onnx")
    assert (report.rewritten, report.near_misses) == (1, ())
    assert attentions(tmp_path / "b.onnx") == [(1, 4, 3, 3)]
    assert not {"Mul", "Div"} & set(ops(tmp_path / "b.onnx"))


def test_a_mask_tiled_for_a_static_batch_is_taken_once(tmp_path: Path) -> None:
    tiled = np.tile(array(2, 1, 3, 3), (3, 1, 1, 1))
    report = proved(by_hand(tmp_path / "a.onnx", "b = Add(s, tiled)", batch="3", tiled=tiled), tmp_path / "b.onnx")
    assert report.rewritten == 1
    assert attentions(tmp_path / "b.onnx") == [(1, 4, 3, 3)]


NEAR_MISSES = {
    "what it combines the scores with is not constant": "z = ReduceMax(x) b = Add(s, z)",
    "the scores are used elsewhere as well": "e = Add(s, bias) b = Add(e, bias) o = Identity(e)",
    "its scale is not one number a head": "e = Mul(s, keys) b = Add(e, bias)",
    "it makes (2, 2, 2, 3, 3) of the scores": """h = Reshape(s, swapped) i = Add(h, mask) b = Reshape(i, joined)""",
}


@pytest.mark.parametrize(("reason", "middle"), NEAR_MISSES.items(), ids=list(NEAR_MISSES))
def test_near_misses_are_left_alone_and_explained(reason: str, middle: str, tmp_path: Path) -> None:
    extra = ", float[N, 2, 3, 3] o" if " o = " in middle else ""
    swapped = np.array([2, -1, 2, 3, 3])
    source = by_hand(tmp_path / "a.onnx", middle, extra=extra, keys=array(3), swapped=swapped)
    if "makes" in reason:
        source = by_hand(tmp_path / "a.onnx", middle, swapped=swapped)
        reason = "of the scores"
    before = ops(source)
    report = PASS.apply(source, tmp_path / "b.onnx")
    assert (report.matches, report.rewritten) == (1, 0)
    assert reason in report.near_misses[0].reason
    assert ops(tmp_path / "b.onnx") == [op for op in before if op != "Constant"]


def test_a_constant_that_differs_between_images_is_a_near_miss(tmp_path: Path) -> None:
    source = by_hand(tmp_path / "a.onnx", "b = Add(s, tiled)", batch="3", tiled=array(6, 1, 3, 3))
    report = PASS.apply(source, tmp_path / "b.onnx")
    assert "not the same for each image" in report.near_misses[0].reason


def test_weights_used_twice_are_a_near_miss(tmp_path: Path) -> None:
    back = BACK.replace("c = MatMul(p, v)", "d = MatMul(p, q) e2 = MatMul(p, v) c = Add(d, e2)")
    report = PASS.apply(by_hand(tmp_path / "a.onnx", "b = Add(s, bias) ", back=back), tmp_path / "b.onnx")
    assert "more than one product" in report.near_misses[0].reason


def test_a_softmax_over_another_axis_is_a_near_miss(tmp_path: Path) -> None:
    back = BACK.replace("axis = -1", "axis = 2")
    report = PASS.apply(by_hand(tmp_path / "a.onnx", "b = Add(s, bias) ", back=back), tmp_path / "b.onnx")
    assert "not over the last of four dimensions" in report.near_misses[0].reason


def test_attention_without_a_constant_is_none_of_its_business(tmp_path: Path) -> None:
    report = PASS.apply(by_hand(tmp_path / "a.onnx", "b = Identity(s) "), tmp_path / "b.onnx")
    assert (report.matches, report.near_misses) == (0, ())


def test_a_q_that_is_used_elsewhere_keeps_its_weights(tmp_path: Path) -> None:
    middle = "e = Mul(s, n) b = Add(e, bias) o = Identity(q) "
    source = by_hand(tmp_path / "a.onnx", middle, extra=", float[N, 2, 3, 4] o", n=np.float32(0.5))
    report = proved(source, tmp_path / "b.onnx")
    assert report.rewritten == 1
    assert ops(tmp_path / "b.onnx").count("Mul") == 1


def test_a_shared_product_of_q_and_k_keeps_its_weights(tmp_path: Path) -> None:
    body = """(float[B, 2, 3, 8] x) => (float[N, 2, 3, 4] y) { a = Reshape(x, to_windows) f = MatMul(a, w)
        g = Reshape(f, halves) q = Transpose<perm = [0, 2, 1, 3]>(g) k = Transpose<perm = [0, 2, 3, 1]>(g)
        s = MatMul(q, k) e = Mul(s, n) b = Add(e, bias) p = Softmax<axis = -1>(b) y = MatMul(p, q) }"""
    source = written(
        tmp_path / "a.onnx", body, to_windows=np.array([-1, 3, 8]), halves=np.array([-1, 3, 2, 4]), w=array(8, 8),
        n=np.float32(0.5), bias=array(1, 2, 3, 3),
    )  # fmt: skip
    assert proved(source, tmp_path / "b.onnx").rewritten == 1
    assert ops(tmp_path / "b.onnx").count("Mul") == 1


@st.composite
def shapes(draw: st.DrawFn) -> dict[str, Any]:
    """From 8 channels: a LayerNorm over 2 is a step, whose gain is far from the 1 that the rounding bound takes."""
    window, stages = draw(st.integers(2, 4)), draw(st.integers(1, 2))
    heads = draw(st.integers(1, 3))
    patch = draw(st.sampled_from([1, 2, 4]))
    side = draw(st.integers(1, 3)) * 2
    return {
        "window": window,
        "patch": patch,
        "image": patch * draw(st.sampled_from([window * side, window * side + 2])),
        "dim": heads * draw(st.sampled_from([8, 16])),
        "heads": tuple(heads * 2**index for index in range(stages)),
        "depths": tuple(draw(st.integers(1, 2)) for _ in range(stages)),
        "cosine": draw(st.booleans()),
    }


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(shape=shapes(), dynamic=st.booleans())
def test_any_swin_is_matched_and_stays_the_same(shape: dict[str, Any], dynamic: bool) -> None:
    with tempfile.TemporaryDirectory() as name:
        source = export(seeded(Swin(**shape)), shape["image"], Path(name) / "a.onnx", dynamic=dynamic)
        report = proved(source, Path(name) / "b.onnx")
        assert (report.rewritten, report.near_misses) == (sum(shape["depths"]), ())
        assert all(constant[0] == 1 for constant in attentions(Path(name) / "b.onnx"))
        again = ir.load(Path(name) / "b.onnx")
        assert not PASS(again).modified
