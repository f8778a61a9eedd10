from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from swins import SWINS, Swin, export, seeded
from torch import nn

from graphs import ops, written
from trtship.errors import GraphError
from trtship.graphs import graph_files, load_graph
from trtship.passes.optimization import optimize
from trtship.passes.thaw import ThawReport, rows_agree, thaw_batch
from trtship.session.onnxruntime import OnnxRuntimeSession


def dynamo(module: nn.Module, size: int, path: Path, *, batch: int = 2) -> Path:
    torch.onnx.export(
        module,
        (torch.randn(batch, 3, size, size),),
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("B", min=1, max=64)},),
        input_names=["input"],
        output_names=["logits"],
        opset_version=20,
        verbose=False,
    ).save(path)
    return path


def worst_error(module: nn.Module, size: int, graph: Path, batches: tuple[int, ...] = (1, 2, 3, 5)) -> float:
    errors = []
    with OnnxRuntimeSession(graph) as session, torch.no_grad():
        assert session.outputs[0].shape == ("B", 5)
        for batch in batches:
            x = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(batch))
            expected, found = module(x), session.infer({"input": x})["logits"]
            errors.append(float((found - expected).norm() / expected.norm()))
    return max(errors)


@pytest.mark.parametrize("exporter", [export, dynamo])
def test_a_swin_that_computes_its_batch_as_an_int(exporter: Callable[..., Path], tmp_path: Path) -> None:
    module = seeded(Swin(frozen=True))
    source = exporter(module, 32, tmp_path / "a.onnx")
    assert worst_error(module, 32, source, (2,)) < 1e-5
    assert worst_error(module, 32, source, (3,)) > 0.01
    assert not rows_agree(source, 3)
    report = thaw_batch(source, tmp_path / "b.onnx")
    assert report.repaired
    assert report.error is not None
    assert report.bound is not None
    assert report.error <= report.bound
    assert worst_error(module, 32, tmp_path / "b.onnx") < 1e-5


@pytest.mark.parametrize("name", SWINS)
def test_graphs_with_a_dynamic_batch_are_left_as_they_are(name: str, swin: Callable[..., Path], tmp_path: Path) -> None:
    for simple in (False, True):
        source = swin(name, simple=simple)
        assert thaw_batch(source, tmp_path / "b.onnx") == ThawReport(traced=2)
        assert ops(tmp_path / "b.onnx") == ops(source)


@pytest.mark.parametrize("name", ["swin", "swinv2", "convnext"])
def test_the_dynamo_exporters_are_too(name: str, exported: Callable[[str], Path], tmp_path: Path) -> None:
    assert thaw_batch(exported(name), tmp_path / "b.onnx") == ThawReport(traced=2)


@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    window=st.integers(2, 4),
    heads=st.integers(1, 3),
    depths=st.lists(st.integers(1, 2), min_size=1, max_size=2),
    traced=st.integers(2, 4),
    cosine=st.booleans(),
)
def test_any_such_swin(window: int, heads: int, depths: list[int], traced: int, cosine: bool) -> None:
    size = 4 * window
    many = tuple(heads * 2**index for index in range(len(depths)))
    module = seeded(
        Swin(
            image=size,
            patch=2,
            window=window,
            dim=4 * heads,
            heads=many,
            depths=tuple(depths),
            cosine=cosine,
            frozen=True,
        )
    )
    with tempfile.TemporaryDirectory() as name:
        source = export(module, size, Path(name) / "a.onnx", batch=traced)
        report = thaw_batch(source, Path(name) / "b.onnx", traced=traced)
        assert len(report.repaired) >= sum(depths)
        assert worst_error(module, size, Path(name) / "b.onnx") < 1e-4


# By hand; x is [B, 3, 4].
HEAD = "(float[B, 3, 4] x) => (float[N, M, K] y) "
REPAIRS: dict[str, tuple[str, dict[str, Any]]] = {
    "a reshape": ("{ r = Reshape(x, s) y = Relu(r) }", {"s": np.array([2, 6, 2])}),
    "a reshape that takes the rest elsewhere": ("{ r = Reshape(x, s) q = Softmax(r) y = Reshape(q, t) }", {
        "s": np.array([2, 6, -1]), "t": np.array([-1, 3, 4]),
    }),
    "a batch in the second place": (
        "{ t = Transpose<perm = [1, 0, 2]>(x) r = Reshape(t, s) u = Relu(r) y = Transpose<perm = [1, 0, 2]>(u) }",
        {"s": np.array([3, 2, 4])},
    ),
    "an expand of what has the batch": (
        "{ m = ReduceMax<keepdims = 1>(x, last) e = Expand(m, s) y = Add(e, x) }",
        {"last": np.array([-1]), "s": np.array([2, 3, 4])},
    ),
    "a token for each image": (
        "{ e = Expand(token, s) y = Concat<axis = 1>(e, x) }",
        {"token": np.ones((1, 1, 4), np.float32), "s": np.array([2, 1, 4])},
    ),
    "a mask for each window of each image": (
        "{ r = Reshape(x, s) a = Add(r, mask) y = Reshape(a, t) }",
        {"s": np.array([-1, 1, 4]), "t": np.array([-1, 3, 4]),
         "mask": np.tile(np.arange(3, dtype=np.float32).reshape(3, 1, 1), (2, 1, 1))},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("body", "tensors"), REPAIRS.values(), ids=list(REPAIRS))
def test_repairs(body: str, tensors: dict[str, Any], tmp_path: Path) -> None:
    source = written(tmp_path / "a.onnx", HEAD + body, **tensors)
    assert not rows_agree(source, 3)
    report = thaw_batch(source, tmp_path / "b.onnx")
    assert len(report.repaired) == 1
    assert all(rows_agree(tmp_path / "b.onnx", batch) for batch in (2, 3, 5))


def test_new_nodes_name_their_pass(tmp_path: Path) -> None:
    body, tensors = REPAIRS["a token for each image"]
    thaw_batch(written(tmp_path / "a.onnx", HEAD + body, **tensors), tmp_path / "b.onnx")
    new = [node for node in load_graph(tmp_path / "b.onnx").graph if "trtship.pass" in node.metadata_props]
    assert [node.op_type for node in new] == ["Shape", "Concat", "Tile"]


REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "differs from image to image": (
        "{ y = Add(x, c) }", {"c": np.arange(24, dtype=np.float32).reshape(2, 3, 4)},
    ),
    "has 2 rows whatever the batch is": (
        "{ y = Slice(x, a, b, a) }", {"a": np.array([0]), "b": np.array([2])},
    ),
    "do not fit each other": (
        "{ u = Slice(x, a, b, a) y = Add(u, x) }", {"a": np.array([0]), "b": np.array([2])},
    ),
    "where no size stands for the batch alone": ("{ y = Reshape(x, s) }", {"s": np.array([1, 3, 8])}),
}  # fmt: skip


@pytest.mark.parametrize(("why", "form"), REFUSED.items(), ids=list(REFUSED))
def test_what_cannot_be_repaired_is_refused_with_its_node(
    why: str, form: tuple[str, dict[str, Any]], tmp_path: Path
) -> None:
    head = HEAD.replace("N, M, K", "2, 3, 4") if "whatever" in why else HEAD
    source = written(tmp_path / "a.onnx", head + form[0], **form[1])
    with pytest.raises(GraphError, match="frozen at 2 in the node") as caught:
        thaw_batch(source, tmp_path / "b.onnx")
    assert why in caught.value.why
    assert not (tmp_path / "b.onnx").exists()


class Picky(nn.Module):
    """Gives each image of the batch a weight of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch = int(x.shape[0] / 1)
        return x.mean((2, 3)) * torch.tensor([[1.0 + image] for image in range(batch)])


def test_a_refusal_names_the_models_source_line(tmp_path: Path) -> None:
    source = dynamo(Picky().eval(), 4, tmp_path / "a.onnx")
    with pytest.raises(GraphError, match=r"test_frozen_batch\.py:\d+"):
        thaw_batch(source, tmp_path / "b.onnx", letter="B")


def test_a_fixed_batch_is_a_choice_and_left_alone(tmp_path: Path) -> None:
    source = written(
        tmp_path / "a.onnx", "(float[2, 3, 4] x) => (float[2, 6, 2] y) { y = Reshape(x, s) }", s=np.array([2, 6, 2])
    )
    assert thaw_batch(source, tmp_path / "b.onnx") == ThawReport(traced=2)
    assert [path.name for path in graph_files(tmp_path / "b.onnx")] == ["b.onnx"]


def test_a_fixed_batch_that_was_meant_to_be_dynamic(tmp_path: Path) -> None:
    module = seeded(Swin(frozen=True))
    source = export(module, 32, tmp_path / "a.onnx", batch=3, dynamic=False)
    report = thaw_batch(source, tmp_path / "b.onnx", traced=3, letter="B")
    assert report.repaired[0] == "the input input"
    assert worst_error(module, 32, tmp_path / "b.onnx") < 1e-5


def test_optimize_thaws_first_and_then_finds_the_windows(tmp_path: Path) -> None:
    module = seeded(Swin(frozen=True))
    report = optimize(export(module, 32, tmp_path / "a.onnx"), tmp_path / "b.onnx")
    assert [(one.name, one.rewritten, one.kept) for one in report.passes[:3]] == [
        ("frozen batch", 8, True), ("windows into heads", 4, True), ("patch embedding", 1, True),
    ]  # fmt: skip
    assert worst_error(module, 32, tmp_path / "b.onnx") < 1e-5
