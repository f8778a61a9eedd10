"""Temporary folders of killed processes, full disks that are named, and paths that are none."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import trtship
from trtship import files
from trtship.bundle import Bundle
from trtship.errors import OutputError, SpecError
from trtship.files import check_room, explain_os_error, named_path, temporary_folder, whole_file, whole_folder

HOLD = """
import sys, time
from trtship.files import temporary_folder
with temporary_folder(*sys.argv[1:]) as folder:
    (folder / "half").write_text("")
    print(folder, flush=True)
    time.sleep(60)
"""
MAKE = "from trtship.files import temporary_folder\nwith temporary_folder(): pass"


def holding(tmp_path: Path, *prefix: str) -> tuple[subprocess.Popen[str], Path]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, *prefix],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


@pytest.mark.parametrize("prefix", [(), ("trtship-race-",), ("trtship-candidate-",)])
def test_the_next_run_removes_folders_whose_process_is_gone_and_no_others(
    tmp_path: Path, prefix: tuple[str, ...]
) -> None:
    killed, gone = holding(tmp_path, *prefix)
    alive, held = holding(tmp_path, *prefix)
    others = [tmp_path / name for name in ("trtship-mine", "trtship-race-0123", "other-0123456789abcdef")]
    for other in others:
        other.mkdir()
    (tmp_path / "trtship-0123456789abcdef").write_text("a file")
    (tmp_path / "trtship-0123456789abcdee").symlink_to(others[0])
    try:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert (gone / "half").exists()
        subprocess.run([sys.executable, "-c", MAKE], env={**os.environ, "TMPDIR": str(tmp_path)}, check=True)
        assert not gone.exists()
        assert (held / "half").exists()
        assert all(other.is_dir() for other in others)
        assert (tmp_path / "trtship-0123456789abcdef").is_file()
        assert (tmp_path / "trtship-0123456789abcdee").is_symlink()
    finally:
        for process in (killed, alive):
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


def full(where: Path | None, other: Path | None = None) -> OSError:
    name = None if where is None else str(where)
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name, None, None if other is None else str(other))


@pytest.fixture
def disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Free bytes of the disks of out, tmp and cache, as the system would tell them."""
    free = {"out": 10 * 2**20, "tmp": 10 * 2**20, "cache": 10 * 2**20}
    for name in free:
        (tmp_path / name).mkdir()
    monkeypatch.setenv("TRTSHIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(files, "_free", lambda place: free[place.relative_to(tmp_path).parts[0]])
    return free


@pytest.mark.parametrize(("name", "advice"), [("out", "another disk"), ("tmp", "TMPDIR"), ("cache", "TRTSHIP_CACHE")])
def test_a_full_disk_is_named_by_what_is_left_on_it(
    tmp_path: Path, disks: dict[str, int], name: str, advice: str
) -> None:
    disks[name] = 0
    error = explain_os_error(full(None), tmp_path / "out" / "a")
    assert f"the disk of {tmp_path / name}" in error.why
    assert "0.0 MiB left" in error.why
    assert advice in error.do


def test_of_a_copy_the_target_is_named_and_what_it_needs(tmp_path: Path, disks: dict[str, int]) -> None:
    source = tmp_path / "cache" / "plan"
    source.write_bytes(bytes(3 * 2**20))
    error = explain_os_error(full(source, tmp_path / "out" / "plan"), tmp_path / "out" / "a")
    assert f"the disk of {tmp_path / 'out' / 'plan'}" in error.why
    assert "3.0 MiB are needed" in error.why
    with pytest.raises(OutputError, match=r"cannot write .*out/a"), whole_folder(tmp_path / "out" / "a"):
        raise full(source, tmp_path / "out" / ".a.partial" / "plan")
    with pytest.raises(OutputError, match=r"tmp"), temporary_folder() as folder:
        raise full(folder / "graph.onnx")


def test_room_is_asked_for_before_anything_is_copied(tmp_path: Path, disks: dict[str, int]) -> None:
    check_room(tmp_path / "out", 3 * 2**20)
    disks["out"] = 2**20
    with pytest.raises(OutputError) as caught:
        check_room(tmp_path / "out", 3 * 2**20)
    assert "3.0 MiB are needed, and its disk has 1.0 MiB left" in caught.value.why


def test_an_error_that_is_no_full_disk_stays_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), whole_file(tmp_path / "a"):
        Path("/nowhere/x").read_bytes()


@pytest.mark.parametrize("text", ["", " ", "\t\n", "a\0b"])
def test_a_path_that_is_none_is_refused(text: str) -> None:
    for call in (
        lambda: named_path(text, "it"),
        lambda: trtship.load(text),
        lambda: Bundle.open(text),
        lambda: trtship.deploy("model.py:make", text),
        lambda: trtship.deploy("model.py:make", "out", checkpoint=text),
        lambda: trtship.deploy("model.py:make", "out", eval_dir=text),
        lambda: trtship.deploy("model.py:make", "out", keep_failed=text),
    ):
        with pytest.raises(SpecError, match="not a path"):
            call()
    assert named_path(".", "it") == Path()
