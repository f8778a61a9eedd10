"""What readers rely on in the reports that a deploy's stages leave below `evidence/`.

The reports have more fields than these, which vary with versions; a report that lacks one of these, or has it of
another type, is refused before anybody shows it.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

SIZE = Annotated[float, msgspec.Meta(ge=0, le=1e15)]
COUNT = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Texts = Annotated[list[str], msgspec.Meta(max_length=10_000)]


class ExportCheck(msgspec.Struct):
    """One comparison of the exported graph with the model."""

    rel_l2: float | None = None


class Exported(msgspec.Struct):
    """How the graph was exported."""

    exporter: str
    opset: int
    checks: Annotated[list[ExportCheck], msgspec.Meta(max_length=10_000)] = msgspec.field(default_factory=list)
    bound: float = 0.0
    fell_back: str | None = ""
    thawed: Texts = msgspec.field(default_factory=list)


class ExportReport(msgspec.Struct):
    export: Exported


class SimplifyReport(msgspec.Struct):
    kept: str
    nodes_before: COUNT
    nodes_after: COUNT | None = None
    why: str = ""


class PassReport(msgspec.Struct):
    """One rewrite of the graph."""

    name: str
    rolled_back: bool
    why: str


class OptimizeReport(msgspec.Struct):
    summary: str
    passes: Annotated[list[PassReport], msgspec.Meta(max_length=10_000)]


class PrecisionReport(msgspec.Struct):
    kept: dict[str, COUNT] = msgspec.field(default_factory=dict)
    asked: list[Any] | None = None
    clipped: list[Any] | None = None
    underflowed: COUNT = 0


class BuildReport(msgspec.Struct):
    plan_mib: SIZE
    seconds: SIZE
    layers: COUNT = 0
    targets: Texts = msgspec.field(default_factory=list)
    gpu: str | None = None


REPORTS: dict[str, type[msgspec.Struct]] = {
    "export": ExportReport,
    "simplify": SimplifyReport,
    "optimize": OptimizeReport,
    "precision": PrecisionReport,
    "build": BuildReport,
}


def read_report(stage: str, data: bytes) -> dict[str, Any]:
    """Return a stage's report as plain values; those that `REPORTS` names are there.

    Raises msgspec.MsgspecError, UnicodeDecodeError or RecursionError for what is no such report.
    """
    found: dict[str, Any] = msgspec.json.decode(data, type=dict[str, Any])
    kind = REPORTS.get(stage)
    if kind is None:
        return found
    return _over(found, msgspec.to_builtins(msgspec.convert(found, kind)))


def _over(found: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """`found`, with the defaults of what it lacks."""
    return {
        **known,
        **{
            k: _over(v, known[k]) if isinstance(v, dict) and isinstance(known.get(k), dict) else v
            for k, v in found.items()
        },
    }
