"""How fast a bundle was measured to be, batch by batch: by `bench --record`, else by `--precision auto`."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import msgspec

from trtship.bench.field import OWN_PLAN
from trtship.bench.report import BenchReport, Row
from trtship.bundle.bundle import Bundle
from trtship.bundle.candidates import choice_of
from trtship.report.evidence import BENCH
from trtship.spec import from_json


class Speed(msgspec.Struct, frozen=True):
    """One batch: its GPU time in ms, and its time from pinned host memory and back to it, where that was measured."""

    batch: int
    ms: float
    end_to_end_ms: float | None = None


class Speeds(msgspec.Struct, frozen=True):
    """By batch, ascending, each once; `source` says who measured them, and on what."""

    source: str
    found: tuple[Speed, ...]


def plan_speeds(bundle: Bundle) -> Speeds | None:
    """Those of the bundle's own plan; None where nobody measured them. Raises BundleCorruptError, SpecError."""
    return _benched(bundle, lambda row: row.ours and row.name == OWN_PLAN) or _chosen(bundle)


def graph_speeds(bundle: Bundle) -> Speeds | None:
    """Those of the graph in the bundle's precision on onnxruntime's CUDA provider, which `bench` times as a peer; rows
    that were wrong are none. Raises BundleCorruptError, SpecError."""
    return _benched(bundle, _is_onnxruntime)


def right_on_cuda(bundle: Bundle) -> bool | None:
    """Whether that graph was right there at every batch that was benched; None where it was not. Raises
    BundleCorruptError, SpecError."""
    report = _report(bundle)
    rows = [row for row in report.rows if row.error is not None and _is_onnxruntime(row)] if report else []
    return all(row.right for row in rows) if rows else None


def _is_onnxruntime(row: Row) -> bool:
    return row.runtime.startswith("onnxruntime ") and row.runtime.endswith(", CUDA")


def _report(bundle: Bundle) -> BenchReport | None:
    if BENCH not in bundle.manifest.files:
        return None
    return from_json(bundle.read(BENCH), BenchReport, what=f"{bundle.folder / BENCH}")


def _benched(bundle: Bundle, wanted: Callable[[Row], bool]) -> Speeds | None:
    report = _report(bundle)
    if report is None:
        return None
    rows = [row for row in report.rows if row.counts and wanted(row)]
    found = tuple(
        _speed(batch, [row for row in rows if row.batch == batch]) for batch in sorted({r.batch for r in rows})
    )
    return Speeds(f"trtship bench{_on(report.gpu.name if report.gpu else None)}", found) if found else None


def _speed(batch: int, rows: list[Row]) -> Speed:
    ms = statistics.median(row.gpu.median_ms for row in rows if row.gpu is not None)
    whole = [row.end_to_end.median_ms for row in rows if row.end_to_end is not None]
    return Speed(batch, ms, statistics.median(whole) if whole else None)


def _chosen(bundle: Bundle) -> Speeds | None:
    choice = choice_of(bundle)
    shipped = [c for c in choice.candidates if c.outcome == "shipped" and c.latency] if choice else []
    if choice is None or not shipped:
        return None
    found = sorted((Speed(one.batch, one.ms) for one in shipped[0].latency), key=lambda one: one.batch)
    return Speeds(f"--precision auto{_on(choice.timed_on)}", tuple(found))


def _on(gpu: str | None) -> str:
    return f" on {gpu}" if gpu else ""
