"""`report.html` put into its bundle, and kept in step with the verdicts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trtship.bench.report import BenchReport
from trtship.bundle import verify as checks
from trtship.bundle.bundle import Bundle, manifest_bytes
from trtship.bundle.manifest import read_manifest
from trtship.bundle.names import MANIFEST, REPORT
from trtship.files import check_writable, whole_file
from trtship.progress import SILENT, Progress
from trtship.report.evidence import BENCH
from trtship.report.page import render
from trtship.spec import to_json
from trtship.verify import Verdict

ATTEMPTS = 5
"""Times that a report is rendered while others record verdicts in between."""


def write_report(bundle: Bundle) -> Bundle:
    """Render the page and put it in the bundle; returns the bundle as it is then.

    Where others record verdicts meanwhile, the page is rendered again, `ATTEMPTS` times at most.

    Raises BundleCorruptError, SpecError (evidence that is not in its schema), OutputError.
    """
    for _ in range(ATTEMPTS):
        page = render(bundle)
        check_writable(bundle.folder / MANIFEST, do="-o FILE writes the report elsewhere, or mend its permissions")
        written = bundle.with_files({REPORT: page.encode()})
        if written.manifest.verdicts == bundle.manifest.verdicts:
            break
        bundle = written
    return written


def report_file(bundle: Bundle, target: Path) -> None:
    """The page as a file somewhere else; the bundle is left as it is."""
    page = render(bundle)
    with whole_file(target) as draft:
        draft.write_text(page, encoding="utf-8")


def record_bench(bundle: Bundle, report: BenchReport) -> Bundle:
    """Keep what was timed in the bundle's evidence, in the place of an earlier one, and write its report anew."""
    return write_report(bundle.with_files({BENCH: to_json(report)}))


def verify_bundle(
    bundle: str | Path | Bundle,
    *,
    eval_dir: str | Path | None = None,
    fp64: bool = False,
    max_rel_l2: float | None = None,
    min_cosine: float | None = None,
    inputs: Any = None,
    family: str | None = None,
    device: int = 0,
    record: bool = True,
    progress: Progress = SILENT,
) -> tuple[Verdict, ...]:
    """Run every check that this machine can run on a bundle; returns all verdicts, those kept from other machines
    among them.

    This is `trtship.bundle.verify_bundle`, which see; where the verdicts are recorded, the report is written anew.
    """
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle, progress=progress)
    if record and opened.is_signed:
        progress.note("the verdicts are not recorded: the bundle is signed, and stays as it is")
        record = False
    verdicts = checks.verify_bundle(
        opened,
        eval_dir=eval_dir,
        fp64=fp64,
        max_rel_l2=max_rel_l2,
        min_cosine=min_cosine,
        inputs=inputs,
        family=family,
        device=device,
        record=record,
        progress=progress,
    )
    if record:  # as they stand in the manifest: what was returned tells of today as well
        manifest = read_manifest(manifest_bytes(opened.folder), where=str(opened.folder / MANIFEST))
        write_report(Bundle(opened.folder, manifest))
    return verdicts
