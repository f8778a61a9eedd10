from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from swins import Swin, export, seeded

from graphs import ops, written
from trtship.graphs import load_graph
from trtship.passes import simplify
from trtship.passes.batches import Batches
from trtship.passes.movements import movement_to
from trtship.passes.proof import Reference
from trtship.passes.rewrite import RewriteReport
from trtship.passes.tokens_first import TokensFirst
from trtship.passes.window_order import WindowOrder
from trtship.passes.windows_into_heads import WindowsIntoHeads

ORDER, FIRST = WindowOrder(), TokensFirst()
V1 = ["timm", "torchvision", "transformers", "own"]
V2 = ["timm V2", "timm V2 CR", "torchvision V2", "transformers V2"]


def in_heads(source: Path, folder: Path) -> Path:
    WindowsIntoHeads().apply(source, folder / "heads.onnx")
    return folder / "heads.onnx"


def both(source: Path, folder: Path) -> tuple[RewriteReport, RewriteReport, Path]:
    """Both passes after windows into heads, each held against the graph that came in."""
    reference = Reference(source)
    reports = []
    path = in_heads(source, folder)
    for one in (ORDER, FIRST):
        target = folder / f"{one.name}.onnx"
        reports.append(one.apply(path, target))
        verdict = reference.verdict(target)
        assert verdict.same, verdict.why
        path = target
    return reports[0], reports[1], path


@pytest.mark.parametrize("name", V1)
def test_every_block_of_every_implementation(name: str, swin: Callable[..., Path], tmp_path: Path) -> None:
    order, first, _ = both(swin(name, simple=True), tmp_path)
    assert (order.matches, order.rewritten) == (4, 4), order.near_misses
    assert (first.matches, first.rewritten) == (4, 4), first.near_misses


def test_a_padded_map_is_a_near_miss(swin: Callable[..., Path], tmp_path: Path) -> None:
    order, first, _ = both(swin("torchvision padded", simple=True), tmp_path)
    assert order.rewritten == 0
    assert {miss.reason for miss in order.near_misses} == {"there is no residual around these windows"}
    assert first.rewritten == 0


@pytest.mark.parametrize("name", V1)
def test_nothing_moves_between_a_norm_and_the_layer_it_feeds(
    name: str, swin: Callable[..., Path], tmp_path: Path
) -> None:
    _, _, path = both(swin(name, simple=True), tmp_path)
    movements = 0
    for node in load_graph(path).graph:
        if node.op_type == "MatMul" and node.inputs[1].const_value is not None:
            step = node.inputs[0].producer()
            while step is not None and step.op_type in ("Reshape", "Transpose", "Slice", "Concat"):
                movements += step.op_type != "Reshape"
                step = step.inputs[0].producer()
            if step is not None and step.op_type == "LayerNormalization":
                assert movements == 0
            movements = 0


@pytest.mark.parametrize("name", V1)
def test_q_k_and_v_have_no_biases_behind_a_norm(name: str, swin: Callable[..., Path], tmp_path: Path) -> None:
    _, _, path = both(swin(name, simple=True), tmp_path)
    layers = [n for n in load_graph(path).graph if n.op_type == "MatMul" and "tokens first" in (n.name or "")]
    assert len(layers) == 4 * 4  # q, k, v and the projection
    biases = [layer for layer in layers if [u.op_type for u in layer.outputs[0].consumers()] == ["Add"]]
    assert len(biases) == 4  # the projection's


@pytest.mark.parametrize("name", V2)
def test_swin_v2_is_a_near_miss(name: str, swin: Callable[..., Path], tmp_path: Path) -> None:
    order, first, _ = both(swin(name, simple=True), tmp_path)
    assert (order.rewritten, first.rewritten) == (0, 0)
    assert {miss.reason for miss in order.near_misses} <= {
        "no norm stands between the residual fork and the windows",
        "there is no residual around these windows",
    }


def test_a_static_batch_stays_static(tmp_path: Path) -> None:
    source = export(seeded(Swin()), 32, tmp_path / "a.onnx", batch=3, dynamic=False)
    simplify(source, tmp_path / "s.onnx", sizes=[{}])
    order, first, path = both(tmp_path / "s.onnx", tmp_path)
    assert (order.rewritten, first.rewritten) == (4, 4)
    assert Batches(load_graph(path)).letter is None


def test_a_second_run_finds_nothing(swin: Callable[..., Path], tmp_path: Path) -> None:
    _, _, path = both(swin("timm", simple=True), tmp_path)
    for one in (ORDER, FIRST):
        assert one.apply(path, tmp_path / "again.onnx").rewritten == 0


def test_a_model_without_windows_is_left_alone(tmp_path: Path) -> None:
    import timm

    torch_model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=5)
    source = export(seeded(torch_model), 32, tmp_path / "a.onnx")
    simplify(source, tmp_path / "s.onnx", sizes=[{"B": 2}])
    for one in (ORDER, FIRST):
        report = one.apply(tmp_path / "s.onnx", tmp_path / "b.onnx")
        assert (report.matches, report.rewritten) == (0, 0)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    window=st.sampled_from([2, 3, 4]),
    across=st.sampled_from([2, 4]),
    heads=st.sampled_from([1, 2, 3]),
    depth=st.sampled_from([1, 2, 3]),
    cosine=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_swin_keeps_its_function(
    window: int, across: int, heads: int, depth: int, cosine: bool, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("drawn")
    side = window * across
    model = Swin(image=2 * side, patch=2, window=window, dim=8 * heads, depths=(depth,), heads=(heads,), cosine=cosine)
    source = export(seeded(model), 2 * side, folder / "a.onnx")
    simplify(source, folder / "s.onnx", sizes=[{"B": 2}])
    order, first, _ = both(folder / "s.onnx", folder)
    assert (order.rewritten, first.rewritten) == (depth, 0 if cosine else depth)


# By hand: a map of 2 x 4 tokens of 3 channels, in two windows of 4 tokens.
CUT = """(float[B, 2, 4, 3] x) => (float[N, 4, 3] y) {
    a = Reshape(x, five) t = Transpose<perm = [0, 2, 1, 3, 4]>(a) y = Reshape(t, windows) }"""
FIVE, WINDOWS = np.array([-1, 2, 2, 2, 3]), np.array([-1, 4, 3])


def movement(graph: str, folder: Path, **tensors: np.ndarray) -> list[int] | None:
    model = load_graph(written(folder / "a.onnx", graph, **tensors))
    from onnx_ir.passes import common

    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    found = movement_to(model.graph.outputs[0], Batches(model))
    return None if found is None else found.order.tolist()


def test_the_order_of_tokens_cut_into_windows(tmp_path: Path) -> None:
    assert movement(CUT, tmp_path, five=FIVE, windows=WINDOWS) == [0, 1, 4, 5, 2, 3, 6, 7]


NO_MOVEMENTS = {
    "channels move": CUT.replace("[0, 2, 1, 3, 4]", "[0, 2, 1, 4, 3]"),
    "images mix": CUT.replace("[0, 2, 1, 3, 4]", "[2, 0, 1, 3, 4]"),
    "tokens are lost": "(float[B, 2, 4, 3] x) => (float[B, 2, 2, 3] y) { y = Slice(x, zero, two, two) }",
    "tokens come twice": "(float[B, 2, 4, 3] x) => (float[B, 4, 4, 3] y) { y = Concat<axis = 1>(x, x) }",
    "an order that depends on data": "(float[B, 2, 4, 3] x, int64[2] i) => (float[B, 2, 4, 3] y) "
    "{ y = Gather<axis = 1>(x, i) }",
    "numbers change": "(float[B, 2, 4, 3] x) => (float[B, 2, 4, 3] y) { y = Neg(x) }",
}


@pytest.mark.parametrize("graph", NO_MOVEMENTS.values(), ids=list(NO_MOVEMENTS))
def test_what_is_no_movement_of_tokens(graph: str, tmp_path: Path) -> None:
    tensors = {"five": FIVE, "windows": WINDOWS, "zero": np.array([0]), "two": np.array([2])}
    used = {name: array for name, array in tensors.items() if name in graph}
    assert movement(graph, tmp_path, **used) is None


def test_a_movement_begins_where_its_value_is_used_elsewhere(tmp_path: Path) -> None:
    graph = CUT.replace("y) {", "y, float[B, 2, 2, 2, 3] z) {").replace("}", "z = Neg(t) }")
    model = load_graph(written(tmp_path / "a.onnx", graph, five=FIVE, windows=WINDOWS))
    from onnx_ir.passes import common

    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    found = movement_to(model.graph.outputs[0], Batches(model))
    assert found is not None
    assert found.is_still
    assert [node.op_type for node in found.nodes] == ["Reshape"]


def test_new_nodes_name_their_pass(swin: Callable[..., Path], tmp_path: Path) -> None:
    _, _, path = both(swin("timm", simple=True), tmp_path)
    names = {node.metadata_props.get("trtship.pass") for node in load_graph(path).graph}
    assert {"window order", "tokens first"} <= names
    assert "Softmax" in ops(path)
    assert isinstance(load_graph(path), ir.Model)
