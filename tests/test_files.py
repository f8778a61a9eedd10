"""Drafts: whole results or none, and nothing of killed runs for long."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest

from trtship.errors import OutputError
from trtship.files import draft_beside, refuse_to_replace, temporary_folder, whole_file, whole_folder


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_file_comes_whole_with_the_usual_permissions(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        with whole_file(tmp_path / "new" / "a.txt") as draft:
            draft.write_text("all of it")
            assert not (tmp_path / "new" / "a.txt").exists()
    finally:
        os.umask(mask)
    assert names(tmp_path) == ["new", "new/a.txt"]
    assert (tmp_path / "new" / "a.txt").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("whole", [whole_file, whole_folder])
def test_what_fails_leaves_neither_a_draft_nor_the_folders_made_for_it(tmp_path, whole, error) -> None:
    def half_way() -> None:
        with whole(tmp_path / "new" / "deep" / "a") as draft:
            (draft.parent / "half").write_text("")
            raise error

    with pytest.raises(error):
        half_way()
    assert names(tmp_path) == []


def test_a_draft_in_use_is_not_swept_and_an_abandoned_one_is(tmp_path: Path) -> None:
    target = tmp_path / "a.onnx"
    abandoned = tmp_path / ".a.onnx.abcd1234.partial"
    others = [tmp_path / ".b.onnx.abcd1234.partial", tmp_path / ".a.onnx.mine.partial", tmp_path / ".a.onnx.abcd1234"]
    for folder in (abandoned, *others):
        folder.mkdir()
        (folder / "part").write_text("")
    with draft_beside(target) as first, draft_beside(target) as second:
        assert first.is_dir()
        assert second.is_dir()
        assert not abandoned.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in others)


@pytest.mark.parametrize("in_one_step", [True, False])
def test_a_folder_is_replaced_only_when_told_to(tmp_path: Path, in_one_step: bool, monkeypatch) -> None:
    if not in_one_step:  # as on systems whose C library has no renameat2

        def none(name: str | None, **options: object) -> None:
            raise OSError

        monkeypatch.setattr(ctypes, "CDLL", none)
    target = tmp_path / "a"
    for content in ("old", "new"):
        with whole_folder(target, replace=True) as draft:
            (draft / "file").write_text(content)
        assert (target / "file").read_text() == content
    with pytest.raises(OutputError), whole_folder(target) as draft:
        (draft / "file").write_text("newer")
    assert (target / "file").read_text() == "new"
    assert names(tmp_path) == ["a", "a/file"]


def test_what_cannot_be_written_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("nowhere")
    for name, force in (("file", False), ("link", False), (".", True), ("file/below", True), ("n" * 300, True)):
        with pytest.raises(OutputError) as caught:
            refuse_to_replace(tmp_path / name, force=force)
        assert caught.value.why
        assert caught.value.do
    refuse_to_replace(tmp_path / "file", force=True)
    refuse_to_replace(tmp_path / "new" / "deep" / "file", force=False)


@pytest.mark.parametrize("folder", [temporary_folder, lambda: whole_folder(Path("out"))])
def test_ctrl_c_while_a_folder_is_made_leaves_none(tmp_path: Path, folder, monkeypatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.chdir(tmp_path)
    make = Path.mkdir

    def interrupted(path: Path, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        make(path, mode, parents, exist_ok)
        if not exist_ok:
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "mkdir", interrupted)
    with pytest.raises(KeyboardInterrupt), folder():
        pytest.fail("the block was entered")
    assert names(tmp_path) == []


def test_ctrl_c_while_a_folder_is_taken_away_leaves_none(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    unlink, calls = os.unlink, []

    def interrupted(*arguments, **options) -> None:
        calls.append(arguments)
        if len(calls) == 1:
            raise KeyboardInterrupt
        unlink(*arguments, **options)

    def leave() -> None:
        with temporary_folder() as folder:
            (folder / "a").write_text("a")
            (folder / "b").write_text("b")
            monkeypatch.setattr("os.unlink", interrupted)

    with pytest.raises(KeyboardInterrupt):
        leave()
    assert len(calls) == 3
    assert names(tmp_path) == []


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system that nobody can write to")
def test_a_folder_that_takes_no_new_ones_is_told_of_at_once() -> None:
    """mkdir says there that there is no such file: not that another run took the draft away."""
    with pytest.raises(OutputError, match="cannot write /proc/out"), whole_file(Path("/proc/out")):
        pytest.fail("the block was entered")
