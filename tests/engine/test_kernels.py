"""The layers of real plans, built without a GPU by TensorRT for RTX, joined with the graphs they were built from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnx_ir
import pytest
import torch
from filelock import FileLock
from swins import Swin, export, seeded
from torch import nn

from graphs import model_of, written
from trtship.engine import KernelReport, PlanLayers, kernels_of, plan_from_onnx
from trtship.engine.attention_blocks import attention_blocks
from trtship.engine.layer_text import Layer
from trtship.engine.layers import layers_of
from trtship.family import Family, choose_family, installed_families
from trtship.gpu import list_gpus
from trtship.graphs import load_graph, save_graph
from trtship.passes import to_precision
from trtship.passes.windows_into_heads import WindowsIntoHeads
from trtship.spec import Precision, ShapeRange, TensorSpec, from_json, to_json

needs_rtx = pytest.mark.skipif("tensorrt_rtx" not in installed_families(), reason="needs tensorrt_rtx")
TYPED = """(float16[2, 4, 16, 8] q, float16[2, 4, 8, 16] k, float16[2, 4, 16, 8] v) => (float16[2, 4, 16, 8] y) {
    p = MatMul(q, k) s = Add(p, bias) wide = Cast<to = 1>(s) w = Softmax<axis = -1>(wide) n = Cast<to = 10>(w)
    y = MatMul(n, v)
}"""
NODES = ("node_of_p", "node_of_s", "node_of_wide", "node_of_w", "node_of_n", "node_of_y")
WEIGHTS = {"w": (64, 128), "v": (128, 64)}
NOTHING = PlanLayers(source="", reason="TensorRT's log lists no layers", layers=())


def _vit() -> nn.Module:
    import timm

    return timm.create_model("vit_tiny_patch16_224", img_size=64, embed_dim=64, depth=2, num_heads=2, num_classes=5)


MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "swin": (lambda: Swin(dim=64, heads=(2, 4)), 32),
    "shallow heads": (lambda: Swin(dim=16, heads=(2, 4)), 32),
    "vit": (_vit, 64),
}
"""Name -> (constructor, side of its pictures). TensorRT's fused attention takes heads of 32 channels, and none of 8."""


@pytest.fixture(scope="module")
def family() -> Family:
    return choose_family("tensorrt_rtx")[0]


@pytest.fixture(scope="module")
def graph(for_all: Path) -> Callable[[str], Path]:
    """`graph("swin")`: a fp32 graph with a dynamic batch, exported once a test run."""
    folder = for_all / "kernels"
    folder.mkdir(exist_ok=True)

    def file(name: str) -> Path:
        path = folder / f"{name}.onnx"
        with FileLock(folder / f"{name}.lock"):
            if not path.exists():
                torch.manual_seed(0)
                make, size = MODELS[name]
                export(seeded(make()), size, path.with_suffix(".partial"))
                path.with_suffix(".partial").rename(path)
        return path

    return file


def built(graph: Path, family: Family, folder: Path, precision: Precision = Precision.FP16) -> KernelReport:
    typed = folder / "typed.onnx"
    to_precision(graph, typed, precision, io_dtype="float32")
    shape = load_graph(graph).graph.inputs[0].shape
    assert shape is not None
    inputs = (TensorSpec(name="input", shape=("B", *(int(size) for size in list(shape)[1:]))),)  # type: ignore[call-overload]
    ranges = {"B": ShapeRange(min=1, opt=2, max=4)}
    plan = plan_from_onnx(typed, family=family, inputs=inputs, ranges=ranges, precision=precision)
    assert from_json(to_json(plan.layers), PlanLayers, what="layers.json") == plan.layers
    return kernels_of(typed, plan.layers)


def windows_into_heads(graph: Path, target: Path) -> Path:
    result = WindowsIntoHeads()(load_graph(graph))
    assert result.report.rewritten == 4
    save_graph(result.model, target)
    return target


@needs_rtx
def test_a_swin_in_fp16_runs_each_attention_in_one_kernel(
    family: Family, graph: Callable[[str], Path], tmp_path: Path
) -> None:
    report = built(graph("swin"), family, tmp_path)
    assert report.source == ("engine inspector" if list_gpus() else "build log")
    blocks = report.attention
    assert [b.name for b in blocks] == ["blocks.0", "blocks.1", "blocks.0_1", "blocks.1_1"]
    assert [(b.maps, b.tokens, b.depth) for b in blocks] == [(8, 16, 32), (8, 16, 32), (4, 16, 32), (4, 16, 32)]
    assert [b.state for b in blocks] == ["fused"] * 4
    assert all(len(b.kernels) == 1 and b.kernels[0].startswith("_gemm_mha") for b in blocks)
    assert report.layers == sum(report.kinds.values())
    assert report.unjoined_names == ()


@needs_rtx
def test_windows_into_heads_leaves_less_around_a_fused_attention(
    family: Family, graph: Callable[[str], Path], tmp_path: Path
) -> None:
    before = built(graph("swin"), family, tmp_path)
    after = built(windows_into_heads(graph("swin"), tmp_path / "fast.onnx"), family, tmp_path)
    assert [b.name for b in after.attention] == [b.name for b in before.attention]
    assert [(b.state, b.maps) for b in after.attention] == [(b.state, b.maps) for b in before.attention]
    assert [len(b.nodes) for b in before.attention] == [6, 9, 6, 6]
    assert [len(b.nodes) for b in after.attention] == [6, 6, 6, 6]
    assert after.layers < before.layers


@needs_rtx
@pytest.mark.parametrize(
    ("model", "precision"), [("shallow heads", Precision.FP16), ("swin", Precision.FP32)], ids=["depth 8", "fp32"]
)
def test_an_attention_without_a_fused_kernel_is_told_with_the_kernels_it_runs_in(
    model: str, precision: Precision, family: Family, graph: Callable[[str], Path], tmp_path: Path
) -> None:
    report = built(graph(model), family, tmp_path, precision)
    assert [b.state for b in report.attention] == ["not fused"] * 4
    assert all(len(b.kernels) > 2 for b in report.attention)
    assert all(any("MatMul" in name for name in b.kernels) for b in report.attention)
    assert not any(name.startswith("_gemm_mha") for b in report.attention for name in b.kernels)


@needs_rtx
def test_a_vits_attention_has_no_bias(family: Family, graph: Callable[[str], Path], tmp_path: Path) -> None:
    report = built(graph("vit"), family, tmp_path)
    assert [(b.name, b.maps, b.tokens, b.depth) for b in report.attention] == [
        ("blocks.0.attn", 2, 17, 32),
        ("blocks.1.attn", 2, 17, 32),
    ]
    assert [b.state for b in report.attention] == ["fused"] * 2
    assert (report.gelu.nodes, report.gelu.unknown) == (2, 0)
    assert (report.layer_norm.nodes, report.layer_norm.apart) == (5, 5)


@needs_rtx
def test_what_runs_around_the_products_of_a_swin(family: Family, graph: Callable[[str], Path], tmp_path: Path) -> None:
    report = built(graph("swin"), family, tmp_path)
    assert (report.gelu.nodes, report.gelu.unknown) == (4, 0)
    assert report.layer_norm.apart == report.layer_norm.nodes == 9
    assert report.layer_norm.kernels >= 9
    assert set(report.moving).isdisjoint(name for b in report.attention for name in b.kernels)
    assert any(name.startswith("__myl_Cast") for name in report.moving)  # of the picture, to fp16
    assert len(report.unjoined_layers) == report.kinds["shape_call"] == 1


@needs_rtx
@pytest.mark.parametrize(("low", "high", "in_product"), [(4, 4, 1), (1, 8, 0)], ids=["one batch", "a range"])
def test_a_gelu_is_fused_into_its_product_or_a_kernel_of_its_own(
    low: int, high: int, in_product: int, family: Family, tmp_path: Path
) -> None:
    """TensorRT for RTX 1.6.1 fuses it where the batch is fixed. The product behind it is needed for that."""
    random = np.random.default_rng(0)
    body = "(float16[B, 49, 64] x) => (float16[B, 49, 64] y) { a = MatMul(x, w) b = Gelu(a) y = MatMul(b, v) }"
    weights = {name: random.standard_normal(shape).astype(np.float16) for name, shape in WEIGHTS.items()}
    path = written(tmp_path / "m.onnx", body, **weights)
    plan = plan_from_onnx(
        path,
        family=family,
        inputs=(TensorSpec(name="x", shape=("B", 49, 64), dtype="float16"),),
        ranges={"B": ShapeRange(min=low, opt=4, max=high)},
        precision=Precision.FP16,
    )
    found = kernels_of(path, plan.layers).gelu
    assert (found.nodes, found.in_product, found.apart, found.kernels) == (
        1,
        in_product,
        1 - in_product,
        1 - in_product,
    )


@pytest.mark.parametrize(
    ("body", "marked", "count"),
    [
        ("y = Gelu(x)", "", 1),
        ("e = Erf(x) f = Add(e, w) y = Mul(x, f)", "", 1),
        ("n = Neg(x) e = Exp(n) f = Add(e, w) y = Div(x, f)", "gelu", 1),
        ("n = Neg(x) e = Exp(n) f = Add(e, w) y = Div(x, f)", "", 0),
    ],
    ids=["operator", "written out", "as our pass writes it", "a SiLU"],
)
def test_a_gelu_counts_once_in_whatever_form(body: str, marked: str, count: int, tmp_path: Path) -> None:
    model = model_of(f"(float[4] x) => (float[4] y) {{ {body} }}", w=np.ones(4, np.float32))
    for node in model.graph.node if marked else ():
        node.metadata_props.add(key="trtship.pass", value=marked)
    onnx.save(model, tmp_path / "m.onnx")
    assert kernels_of(tmp_path / "m.onnx", NOTHING).gelu.nodes == count


@needs_rtx
def test_nodes_without_names_are_joined_and_names_that_two_nodes_share_are_not(family: Family, tmp_path: Path) -> None:
    weights = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
    model = model_of("(float[4, 8] x) => (float[4, 8] y) { a = MatMul(x, w) b = Relu(a) y = MatMul(b, w) }", w=weights)
    inputs, path = (TensorSpec(name="x", shape=(4, 8)),), tmp_path / "m.onnx"

    def joined() -> KernelReport:
        onnx.save(model, path)
        return kernels_of(path, plan_from_onnx(path, family=family, inputs=inputs, ranges={}).layers)

    report = joined()
    assert (report.unjoined_layers, report.unjoined_names) == ((), ())
    for node in model.graph.node:
        node.name = "same"
    report = joined()
    assert report.unjoined_names == ("same",)
    assert len(report.unjoined_layers) == report.layers > 0


@needs_rtx
@pytest.mark.parametrize("said", [[], ["something else"], ["Layers:\nName: x, LayerType: gemm, unheard of"]])
@pytest.mark.skipif(bool(list_gpus()), reason="this machine has a GPU")
def test_a_log_that_lists_no_layers_leaves_an_empty_list_and_the_reason(family: Family, said: list[str]) -> None:
    found = layers_of(b"no plan", family=family, said=said, tf32=True)
    assert (found.source, found.layers) == ("", ())
    assert "TensorRT's log lists no layers" in found.reason
    assert ("1 entries of TensorRT's log could not be read" in found.reason) == ("unheard of" in "".join(said))


@needs_rtx
def test_a_plan_that_cannot_be_inspected_falls_back_on_the_log(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trtship.engine.layers.list_gpus", lambda: ("a GPU that this plan is not for",))
    sample = (Path(__file__).parent / "layers_tensorrt_rtx_1.6.1.txt").read_text()
    found = layers_of(b"no plan", family=family, said=[sample], tf32=True)
    assert (found.source, len(found.layers)) == ("build log", 9)
    assert found.reason.startswith("the plan could not be inspected here: ")


def typed_attention(folder: Path) -> Path:
    bias = np.zeros((1, 4, 16, 16), np.float16)
    return written(folder / "attention.onnx", TYPED, bias=bias)


def layer(name: str, kind: str, *nodes: str) -> Layer:
    return Layer(name=name, kind=kind, nodes=nodes, inputs=(), outputs=(), tactic="")


MHA, CUT = layer("_gemm_mha_v2", "kgen", *NODES), layer("__myl_Slic_myl0_8", "kgen", *NODES)
WV = layer("c", "gemm", "node_of_y")


@pytest.mark.parametrize(
    ("layers", "state"),
    [
        ([MHA], "fused"),
        ([layer("__myl_AddMoveReplConc_myl0_1", "kgen", "q", *NODES), MHA, CUT], "fused"),
        ([CUT, layer("b", "kgen", "node_of_w")], "not fused"),
        ([layer("a", "gemm", "node_of_p"), layer("b", "kgen", *NODES[1:5]), WV], "not fused"),
        ([layer("a", "gemm", "node_of_p"), layer("b", "kgen", *NODES), WV], "not fused"),
        ([layer("a", "gemm", *NODES[:5])], "unknown"),
        ([layer("{ForeignNode[node_of_p...node_of_y]}", "Myelin", *NODES)], "unknown"),
        ([], "unknown"),
    ],
    ids=[
        "one kernel",
        "padded and cut",
        "cut alone",
        "three kernels",
        "pads within",
        "no name for v",
        "a foreign node",
        "no layers",
    ],
)
def test_what_counts_as_fused(layers: list[Layer], state: str, tmp_path: Path) -> None:
    plan = msgspec.structs.replace(NOTHING, layers=tuple(layers))
    (block,) = kernels_of(typed_attention(tmp_path), plan).attention
    assert (block.state, block.fused_in) == (state, MHA.name if state == "fused" else "")
    assert block.nodes == NODES
    assert block.kernels == tuple(one.name for one in layers)
    assert (block.maps, block.tokens, block.depth) == (4, 16, 8)


def test_a_plan_without_layers_leaves_everything_unknown_and_says_why(graph: Callable[[str], Path]) -> None:
    report = kernels_of(graph("swin"), NOTHING)
    assert {b.state for b in report.attention} == {"unknown"}
    assert (report.layer_norm.unknown, report.layer_norm.apart, report.kinds) == (9, 0, {})
    assert report.reason == NOTHING.reason


NOT_ATTENTION = {
    "a classifier's softmax": "(float[B, 8] x) => (float[B, 8] y) { a = MatMul(x, w) y = Softmax(a) }",
    "weights on both sides": "(float[B, 8] x) => (float[B, 8] y) { a = MatMul(x, w) b = Softmax(a) y = MatMul(b, w) }",
    "a weight behind": """(float[B, 8, 8] x, float[B, 8, 8] k) => (float[B, 8, 8] y) {
        a = MatMul(x, k) b = Softmax(a) y = MatMul(b, w) }""",
    "another operator between": """(float[B, 8, 8] x) => (float[B, 8, 8] y) {
        a = MatMul(x, x) r = Relu(a) b = Softmax(r) y = MatMul(b, x) }""",
}


@pytest.mark.parametrize("body", NOT_ATTENTION.values(), ids=NOT_ATTENTION.keys())
def test_what_is_no_attention(body: str, tmp_path: Path) -> None:
    path = written(tmp_path / "m.onnx", body, w=np.ones((8, 8), np.float32))
    assert list(attention_blocks(load_graph(path).graph)) == []


@pytest.mark.parametrize(
    ("names", "scopes", "found"),
    [
        (("", "", ""), None, "w"),
        (("node_matmul", "node_softmax", "node_matmul_1"), None, "node_softmax"),
        (("/a/a.0/attn/MatMul", "/a/a.0/attn/softmax/Softmax", "/a/a.0/attn/MatMul_1"), None, "a.0.attn"),
        (("/MatMul", "/Softmax", "/MatMul_1"), None, "/Softmax"),
        (("m", "node_softmax/windows into heads/Softmax", "n"), None, "node_softmax"),
        (("node_matmul", "node_softmax", "n"), "['', 'a', 'a.0', 'a.0.attn', 'softmax']", "a.0.attn"),
        (("node_matmul", "node_softmax", "n"), "no list (", "node_softmax"),
    ],
)
def test_a_block_has_its_modules_name_where_the_graph_tells_it(
    names: tuple[str, str, str], scopes: str | None, found: str, tmp_path: Path
) -> None:
    model = onnx_ir.load(typed_attention(tmp_path))
    core = [node for node in model.graph if node.op_type in ("MatMul", "Softmax")]
    for node, name in zip(core, names, strict=True):
        node.name = name
        if "windows into heads" in name:
            node.metadata_props["trtship.pass"] = "windows into heads"
        if scopes is not None:
            node.metadata_props["pkg.torch.onnx.name_scopes"] = scopes
    (block,) = attention_blocks(model.graph)
    assert block.name == found
