"""Frozen batches in graphs that somebody brings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from swins import Swin, export, seeded

from graphs import written
from trtship.errors import GraphError
from trtship.graphs import graph_files
from trtship.passes.optimization import optimize
from trtship.passes.thaw import ThawReport
from trtship.passes.thaw_unknown import thaw, thaw_unknown
from trtship.session.onnxruntime import OnnxRuntimeSession


def frozen(path: Path, *, batch: int) -> tuple[torch.nn.Module, Path]:
    module = seeded(Swin(frozen=True))
    return module, export(module, 32, path, batch=batch)


def is_the_model(module: torch.nn.Module, graph: Path) -> bool:
    """At a batch that no graph here was traced with."""
    x = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    with torch.no_grad(), OnnxRuntimeSession(graph) as session:
        found = session.infer({"input": x.numpy()})["logits"]
        return found.shape == (3, 5) and bool(np.allclose(found, module(x).numpy(), rtol=0, atol=1e-5))


def test_a_graph_that_is_frozen_at_one_is_repaired(tmp_path: Path) -> None:
    module, source = frozen(tmp_path / "a.onnx", batch=1)
    assert not is_the_model(module, source)
    report = thaw_unknown(source, tmp_path / "b.onnx", external_over=1000)
    assert (report.traced, len(report.repaired)) == (1, 8)
    assert [path.name for path in graph_files(tmp_path / "b.onnx")] == ["b.onnx", "b.onnx.data"]
    assert is_the_model(module, tmp_path / "b.onnx")


def test_where_nothing_tells_the_batch_no_guess_is_made(tmp_path: Path) -> None:
    """Frozen at 4, it can be repaired at 1 and at 2 as well, and is then another function."""
    module, source = frozen(tmp_path / "a.onnx", batch=4)
    with pytest.raises(GraphError, match="in several ways") as caught:
        thaw_unknown(source, tmp_path / "b.onnx")
    assert "batch 1 or 2 or 4" in caught.value.why
    assert "--traced" in caught.value.do
    assert not (tmp_path / "b.onnx").exists()
    thaw(source, tmp_path / "b.onnx", traced=2)
    assert not is_the_model(module, tmp_path / "b.onnx")
    optimize(source, tmp_path / "b.onnx", traced=4)
    assert is_the_model(module, tmp_path / "b.onnx")


def test_a_healthy_graph_is_not_touched(tmp_path: Path) -> None:
    source = export(seeded(Swin()), 32, tmp_path / "a.onnx")
    assert thaw_unknown(source, tmp_path / "b.onnx") == ThawReport(traced=2)
    assert not (tmp_path / "b.onnx").exists()


def test_a_fixed_batch_is_a_choice(tmp_path: Path) -> None:
    source = export(seeded(Swin(frozen=True)), 32, tmp_path / "a.onnx", batch=4, dynamic=False)
    assert thaw_unknown(source, tmp_path / "b.onnx").repaired == ()
    report = optimize(source, tmp_path / "c.onnx", traced=None)
    assert [one.why for one in report.passes][:1] == ["nothing matched"]
    assert onnx.load(tmp_path / "c.onnx").graph.input[0].type.tensor_type.shape.dim[0].dim_value == 4


def test_rows_that_depend_on_each_other_are_no_frozen_batch(tmp_path: Path) -> None:
    body = "(float[B, 4] x) => (float[B, 4] y) { m = ReduceMean(x, zero) y = Sub(x, m) }"
    source = written(tmp_path / "a.onnx", body, zero=np.array([0]))
    with pytest.raises(GraphError, match="no node was found in which the batch is a constant"):
        thaw_unknown(source, tmp_path / "b.onnx")
