"""What a bundle says of itself, read once: the manifest and the records below `evidence/`."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from trtship.bench.report import BenchReport
from trtship.bundle.bundle import Bundle
from trtship.bundle.candidates import Choice, choice_of
from trtship.bundle.manifest import Manifest
from trtship.errors import BundleError
from trtship.spec import Record, from_json
from trtship.verify.error_by_layer import ErrorsByLayer

STAGES = "evidence/stages.json"
BENCH = "evidence/bench.json"
ERRORS = "evidence/errors_by_layer.json"
MAX_ROWS = 2_000
"""Of a record: a search has dozens of stages, a bench dozens of rows, and 64 tensors are read out."""
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
        """Raises BundleCorruptError, SpecError for a record that is not in its schema, BundleError for one that is
        longer than a report shows."""

        def record(name: str, kind: type[T]) -> T | None:
            if name not in bundle.manifest.files:
                return None
            return from_json(bundle.read(name), kind, what=f"{bundle.folder / name}")

        bench, errors = record(BENCH, BenchReport), record(ERRORS, ErrorsByLayer)
        stages = record(STAGES, tuple[StageTime, ...]) or ()
        for name, count in (
            (STAGES, len(stages)),
            (BENCH, len(bench.rows) if bench else 0),
            (ERRORS, len(errors.layers) if errors else 0),
        ):
            if count > MAX_ROWS:
                raise BundleError(
                    f"{bundle.folder / name} is not read",
                    why=f"it has {count} entries, and {MAX_ROWS} are the most",
                    do="deploy the model again",
                )
        return Evidence(
            manifest=bundle.manifest,
            stages=stages,
            reports={name: bundle.evidence(name) for name in REPORTS},
            choice=choice_of(bundle),
            bench=bench,
            errors=errors,
        )
