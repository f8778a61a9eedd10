"""Disks that are full or read-only, and files of other people: one message, nothing half-written."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_workplace import QUICK, Workplace

from graphs import written

SCALE = "(float[B, 4] x) => (float[B, 4] y) { one = Constant<value = float {1.5}>() y = Mul(x, one) }"
OUT_OF_SPACE = "No space left on device"


@pytest.fixture
def disk(work: Workplace) -> Iterator[Path]:
    """A disk of its own, of 64 KiB, with nothing left on it."""
    place = work.folder.parent / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"only root may mount a small disk: {mounted.stderr.strip()}")
    try:
        with (place / "ballast").open("wb", buffering=0) as ballast:
            assert ballast.write(bytes(2**20)) < 2**20
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def on(disk: Path) -> list[str]:
    return sorted(str(path.relative_to(disk)) for path in disk.rglob("*"))


def test_a_full_disk_gets_no_part_of_a_bundle_graph_or_plan(work: Workplace, disk: Path, deployed: Path) -> None:
    written(work / "a.onnx", SCALE)
    for command in (
        ("deploy", "model.py:small", *QUICK, "-o", disk / "new" / "a.trtship"),
        ("export", "a.onnx", "-o", disk / "b.onnx"),
        ("simplify", "a.onnx", "-o", disk / "b.onnx"),
        ("build", "a.onnx", "-o", disk / "b.plan"),
    ):
        message = work.refuses(*command)
        assert OUT_OF_SPACE in message
        assert "free some space" in message
        assert on(disk) == ["ballast"]


def test_a_full_disk_for_the_cache_is_told(work: Workplace, disk: Path) -> None:
    full = {"TRTSHIP_CACHE": str(disk / "cache")}
    message = work.refuses("deploy", "model.py:small", *QUICK, "-o", "a.trtship", env=full)
    assert OUT_OF_SPACE in message
    assert str(disk / "cache") in message


def test_a_limit_on_file_sizes_is_told(work: Workplace) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    written(work / "a.onnx", SCALE)
    message = work.refuses("build", "a.onnx", "-o", "a.plan", preexec_fn=limit)
    assert os.strerror(errno.EFBIG) in message
    assert "ulimit -f" in message


def test_a_read_only_disk_is_told_before_any_work(work: Workplace, disk: Path, bundle: Path) -> None:
    written(work / "a.onnx", SCALE)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    for command in (
        ("deploy", "model.py:small", *QUICK, "-o", disk / "a.trtship", "--quiet"),
        ("export", "a.onnx", "-o", disk / "b.onnx", "--quiet"),
        ("simplify", "a.onnx", "-o", disk / "b.onnx", "--quiet"),
        ("build", "a.onnx", "-o", disk / "b.plan", "--quiet"),
    ):
        assert "no write permission" in work.refuses(*command)


@pytest.fixture
def guarded(work: Workplace, bundle: Path) -> Iterator[Workplace]:
    """A workplace with a bundle and a graph, whose folder nobody may write to."""
    written(work / "a.onnx", SCALE)
    (work / "sealed").mkdir()
    modes = {work / "sealed": 0o000, bundle: 0o555, work.folder: 0o555}
    for folder, mode in modes.items():
        folder.chmod(mode)
    yield work
    for folder in reversed(modes):
        folder.chmod(0o755)


def without_privilege() -> None:
    """Run between fork and exec: root's right to pass over permissions is given up, so that tests hold as root too."""
    pr_capbset_drop, cap_dac_override, cap_dac_read_search = 24, 1, 2  # linux/prctl.h, linux/capability.h
    for capability in (cap_dac_override, cap_dac_read_search):
        ctypes.CDLL(None).prctl(pr_capbset_drop, capability, 0, 0, 0)


def test_where_one_may_not_write_is_told_before_any_work(guarded: Workplace) -> None:
    for command in (
        ("deploy", "model.py:small", *QUICK, "-o", "a.trtship", "--quiet"),
        ("deploy", "model.py:small", *QUICK, "-o", "small.trtship", "--force", "--quiet"),
        ("deploy", "model.py:small", *QUICK, "-o", "sealed/deep/a.trtship", "--quiet"),
        ("export", "a.onnx", "-o", "new/b.onnx", "--quiet"),
        ("simplify", "a.onnx", "-o", "b.onnx", "--quiet"),
        ("build", "a.onnx", "-o", "b.plan", "--quiet"),
        ("verify", "small.trtship"),
    ):
        message = guarded.refuses(*command, preexec_fn=without_privilege)
        assert "permission" in message
    assert "--no-record" in message
    assert guarded.run("verify", "small.trtship", "--no-record", preexec_fn=without_privilege).code == 0


def test_a_file_that_one_may_not_read_is_told(guarded: Workplace) -> None:
    for name, *command in (
        ("a.onnx", "export", "a.onnx", "-o", guarded.temporary / "b.onnx"),
        ("a.onnx", "build", "a.onnx", "-o", guarded.temporary / "b.plan"),
        ("a.onnx", "deploy", "a.onnx", "-o", guarded.temporary / "b.trtship"),
        ("picture.png", "run", "small.trtship", "picture.png"),
        ("model.py", "export", "model.py:small", "-o", guarded.temporary / "b.onnx"),
        ("small.trtship/labels.txt", "inspect", "small.trtship"),
        ("small.trtship/manifest.json", "inspect", "small.trtship"),
    ):
        before = (guarded / name).stat().st_mode
        (guarded / name).chmod(0)
        message = guarded.run(*command, preexec_fn=without_privilege)
        (guarded / name).chmod(before)
        assert message.code == 2, message.err
        assert "Permission denied" in message.err
        assert Path(name).name in message.err.partition("error: ")[2]
        assert "Traceback" not in message.err


def test_a_home_that_takes_no_cache_asks_for_another_place(guarded: Workplace) -> None:
    home = {"HOME": str(guarded / "sealed"), "TRTSHIP_CACHE": "", "XDG_CACHE_HOME": ""}
    output = guarded.temporary / "b.trtship"
    done = guarded.run("deploy", "a.onnx", "-o", output, env=home, preexec_fn=without_privilege)
    assert done.code == 2, done.err
    assert "TRTSHIP_CACHE" in done.err
    assert not output.exists()
