"""README's tables of what was benchmarked, from a result that is made up here."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from trtship.bench import BenchReport, Row
from trtship.bench.timing import Timing
from trtship.measure import Measure
from trtship.spec import as_plain

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import tables

    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    yield tables
    sys.modules.pop("tables")


def row(
    name: str, ms: float | None, *, error: float = 1e-3, right: bool = True, ours: bool = False, build: int = 0
) -> Row:
    timing = None if ms is None else Timing(median_ms=ms, low_ms=ms, high_ms=ms, rounds=15, calls=9)
    exact = Measure(sizes={"B": 32}, output="logits", finite=True, rel_l2=error)
    return Row(
        batch=32, name=name, build=build, ours=ours, gpu=timing, exact_error=exact, right=right and ms is not None
    )


def document(*rows: Row) -> dict[str, Any]:
    return {
        "model": "swin",
        "precision": "fp16",
        "date": "2030-01-02T03:04:05+00:00",
        "machine": {"gpus": [{"name": "G"}]},
        "versions": {"tensorrt_rtx": "1.6", "torch": "2.11"},
        "report": as_plain(BenchReport(model="swin", precision="fp16", gpu=None, states=(), rows=rows)),
    }


def test_the_headline_is_our_median_against_the_fastest_right_peer(tables: Any, tmp_path: Path) -> None:
    rows = [
        *[row("ours", ms, ours=True, build=i, error=2e-3) for i, ms in ((1, 2.0), (2, 2.5), (3, 4.0))],
        row("eager", 9.0),
        row("eager, CUDA graph", 8.0),
        row("fast, wrong", 0.1, right=False),
        row("absent", None),
        row("peer, a", 6.0),
        row("peer, b", 5.0, error=3e-3),
    ]
    (tmp_path / "bench_swin_fp16.json").write_text(json.dumps(document(*rows)))
    lines = tables.bench_table().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:3]]
    assert cells[0][8:] == ["eager", "fast", "absent", "peer"]
    assert cells[2] == [
        *("32", "2.500", "12800", "peer, b", "5.000", "2.00", "2.0e-03", "3.0e-03"),
        *("8.000", "wrong", "not timed", "5.000"),
    ]
    assert "`swin`, fp16. G, TensorRT for RTX 1.6, torch 2.11, 2030-01-02." in lines


def test_without_ours_there_is_no_headline_but_the_peers_are_there(tables: Any, tmp_path: Path) -> None:
    (tmp_path / "bench_swin_fp16.json").write_text(json.dumps(document(row("ours", None, ours=True), row("peer", 5.0))))
    assert tables.bench_table().splitlines()[2] == "| 32 |  |  |  |  |  |  |  | 5.000 |"
