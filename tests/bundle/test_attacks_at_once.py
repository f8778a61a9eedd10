"""Recording in a bundle while others record in it, or replace it: nothing is lost, and no folder is broken."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from deployed import copy_of, reseal
from trtship.bundle import Bundle
from trtship.bundle import verify as checks
from trtship.bundle.replacing import replaceable_bundle
from trtship.bundle.verify import merge
from trtship.errors import BundleCorruptError, OutputError
from trtship.files import locked, whole_folder
from trtship.report import verify_bundle, write_report
from trtship.verify import Verdict

Deployed = Callable[[str, str], Path]


@pytest.fixture
def folder(deployed: Deployed, tmp_path: Path) -> Path:
    return copy_of(deployed("colours", "fp16"), tmp_path)


def verdict(subject: str, gate: str = "rel_l2") -> Verdict:
    return Verdict(subject=subject, gate=gate, state="passed", runtime="elsewhere")


def record(bundle: Bundle, one: Verdict) -> Bundle:
    return bundle.with_verdicts(lambda now: merge(now, [one]))


def subjects(folder: Path) -> set[str]:
    return {v.subject for v in Bundle.open(folder).manifest.verdicts}


def replace_with(folder: Path, other: Path) -> None:
    """As `deploy --force` does."""
    with whole_folder(folder, replace=replaceable_bundle) as draft:
        for path in sorted(other.rglob("*")):
            place = draft / path.relative_to(other)
            place.mkdir() if path.is_dir() else place.write_bytes(path.read_bytes())


def test_what_two_record_is_kept(folder: Path) -> None:
    one, other = Bundle.open(folder), Bundle.open(folder)
    record(one, verdict("first"))
    record(other, verdict("second"))
    assert {"first", "second", "graph fp32"} <= subjects(folder)


def recorder(folder: Path, names: list[str], start: object) -> None:
    bundle = Bundle.open(folder)
    start.wait()  # type: ignore[attr-defined]
    for name in names:
        record(bundle, verdict(name))


def test_what_many_processes_record_is_kept(folder: Path) -> None:
    context = multiprocessing.get_context("fork")
    start = context.Event()
    names = [[f"{process}-{n}" for n in range(5)] for process in range(4)]
    processes = [context.Process(target=recorder, args=(folder, own, start)) for own in names]
    for process in processes:
        process.start()
    start.set()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert {name for own in names for name in own} <= subjects(folder)


def test_two_verifies_at_once_keep_both_sets_of_verdicts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one begins before the first has recorded."""
    check = checks.check_bundle

    def meanwhile(bundle: Bundle, **options: object) -> tuple[Verdict, ...]:
        found = check(bundle, **options)  # type: ignore[arg-type]
        record(Bundle.open(folder), verdict("of the other"))
        return found

    monkeypatch.setattr(checks, "check_bundle", meanwhile)
    verify_bundle(folder)
    assert {"of the other", "graph fp32", "graph fp16"} <= subjects(folder)
    assert "of the other" in (folder / "report.html").read_text()


def test_a_bundle_that_was_replaced_meanwhile_is_left_as_it_is(
    folder: Path, deployed: Deployed, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = checks.check_bundle

    def meanwhile(bundle: Bundle, **options: object) -> tuple[Verdict, ...]:
        found = check(bundle, **options)  # type: ignore[arg-type]
        replace_with(folder, deployed("colours", "fp32"))
        return found

    monkeypatch.setattr(checks, "check_bundle", meanwhile)
    with pytest.raises(OutputError, match="another bundle was put in its place"):
        verify_bundle(folder)
    assert Bundle.open(folder).manifest == Bundle.open(deployed("colours", "fp32")).manifest


def test_files_and_reports_are_not_put_into_another_bundle(folder: Path, deployed: Deployed) -> None:
    opened = Bundle.open(folder)
    replace_with(folder, deployed("colours", "fp32"))
    for act in (
        lambda: opened.with_files({"evidence/bench.json": b"{}"}),
        lambda: opened.with_verdicts(()),
    ):
        with pytest.raises(OutputError, match="nothing was recorded") as caught:
            act()
        assert caught.value.exit_code == 2
    with pytest.raises(BundleCorruptError):
        write_report(opened)
    assert Bundle.open(folder).manifest == Bundle.open(deployed("colours", "fp32")).manifest
    assert not (folder / "evidence/bench.json").exists()


def test_a_bundle_of_the_same_model_made_anew_is_another_one(folder: Path) -> None:
    opened = Bundle.open(folder)
    reseal(folder, created="2030-01-01T00:00:00+00:00")
    with pytest.raises(OutputError, match="another bundle"):
        record(opened, verdict("late"))


def test_a_bundle_that_was_removed_or_damaged_meanwhile_is_told(folder: Path) -> None:
    opened = Bundle.open(folder)
    kept = (folder / "manifest.json").read_bytes()
    (folder / "manifest.json").write_bytes(b"{}")
    with pytest.raises(OutputError, match="nothing was recorded"):
        record(opened, verdict("late"))
    (folder / "manifest.json").write_bytes(kept)
    folder.rename(folder.parent / "elsewhere")
    with pytest.raises(OutputError, match="nothing was recorded"):
        record(opened, verdict("late"))
    assert not folder.exists()


def test_replacing_waits_for_who_writes_and_a_writer_finds_the_new_bundle(folder: Path, deployed: Deployed) -> None:
    opened = Bundle.open(folder)
    thread = threading.Thread(target=replace_with, args=(folder, deployed("colours", "fp32")))
    with locked(folder):
        thread.start()
        thread.join(0.5)
        assert thread.is_alive()
        assert Bundle.open(folder).manifest == opened.manifest  # readers need no lock
    thread.join(30)
    assert not thread.is_alive()
    with locked(folder), pytest.raises(RuntimeError):
        raise RuntimeError
    with pytest.raises(OutputError, match="another bundle"):
        record(opened, verdict("late"))


def test_nothing_is_left_beside_or_in_the_bundle(folder: Path) -> None:
    record(Bundle.open(folder), verdict("more"))
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    listed = {*Bundle.open(folder).manifest.files, "manifest.json", "report.html"}
    assert {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} <= listed


def test_a_bundle_that_may_not_be_written_to_is_verified_without_recording(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        found = verify_bundle(folder, record=False)
        with locked(folder):
            pass
    finally:
        for path in [folder, *folder.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
    assert {v.subject for v in found} >= {"graph fp32"}
