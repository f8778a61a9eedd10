"""Everybody on a small Swin, on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from trtship.bench import bench
from trtship.bench.gpu_state import gpu_state
from trtship.bench.original import options_of, original_of
from trtship.bundle import Bundle


@pytest.mark.alone
def test_ours_and_the_peers_are_right_in_cuda_graphs_and_timed(deployed: Callable[[str, str], Path]) -> None:
    bundle = Bundle.open(deployed("swin", "fp16"))
    options = options_of(bundle)
    before = gpu_state(ours=0)  # of this process, say, where another test used the GPU
    assert before is not None
    against = ["eager", "compile", "onnx-tensorrt"]
    report = bench(
        bundle,
        original_of(bundle, options),
        options,
        against=against,
        batches=[1, 4],
        builds=2,
        together=True,
        rounds=6,
    )
    assert {(row.label, row.batch): row.reason for row in report.rows if row.reason} == {}
    assert all(row.right for row in report.rows)
    assert {row.name for row in report.rows if not row.cuda_graph} == {"eager"}
    for batch in (1, 4):
        names = [row.label for row in report.rows if row.batch == batch]
        assert len(names) == 1 + 2 + 3 + 2 + 2
        ratio = report.ratio(batch)
        assert ratio is not None
        assert ratio.ratio > 0
    assert all(
        state.state is not None and state.state.other_processes == before.other_processes for state in report.states
    )
