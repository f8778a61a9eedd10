"""What a bundle says of itself, read once: the manifest and the records below `evidence/`."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from trtship.bench.report import BenchReport
from trtship.bundle.bundle import Bundle
from trtship.bundle.candidates import Choice, choice_of
from trtship.bundle.manifest import Manifest
from trtship.spec import Record, from_json
from trtship.verify.error_by_layer import ErrorsByLayer

STAGES = "evidence/stages.json"
BENCH = "evidence/bench.json"
ERRORS = "evidence/errors_by_layer.json"
REPORTS = ("export", "simplify", "optimize", "precision", "build")

T = TypeVar("T")


class StageTime(Record, frozen=True):
    """A stage of the deploy that made the bundle, and how many seconds it took to make what came of it: those of an
    earlier run, where that was remembered. So the same stages leave the same record."""

    name: str
    seconds: float
    did: str = ""


class Evidence(msgspec.Struct, frozen=True):
    """`reports` are the stages' own, by name; what was not recorded is None, or empty."""

    manifest: Manifest
    stages: tuple[StageTime, ...]
    reports: dict[str, dict[str, Any]]
    choice: Choice | None
    bench: BenchReport | None
    errors: ErrorsByLayer | None

    @staticmethod
    def read(bundle: Bundle) -> Evidence:
        """Raises BundleCorruptError, and SpecError for a record that is not in its schema."""

        def record(name: str, kind: type[T]) -> T | None:
            if name not in bundle.manifest.files:
                return None
            return from_json(bundle.read(name), kind, what=f"{bundle.folder / name}")

        return Evidence(
            manifest=bundle.manifest,
            stages=record(STAGES, tuple[StageTime, ...]) or (),
            reports={name: bundle.evidence(name) for name in REPORTS},
            choice=choice_of(bundle),
            bench=record(BENCH, BenchReport),
            errors=record(ERRORS, ErrorsByLayer),
        )
