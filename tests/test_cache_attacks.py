"""What somebody else, or a fault, may put into the cache's folder: never waited for, never taken for another's."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from in_time import in_time
from trtship.cache import Cache
from trtship.errors import OutputError
from trtship.files import NotRegularError, cache_root, sha256_of
from trtship.kept import Kept


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def maker(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "file").write_text(text) and None


def test_an_entry_in_the_place_of_another_is_made_anew_and_told(cache: Cache) -> None:
    mine = cache.stage("plan", {"model": "mine"}, maker("mine"))
    theirs = cache.stage("plan", {"model": "theirs"}, maker("theirs"))
    shutil.rmtree(mine.folder)
    shutil.copytree(theirs.folder, mine.folder)
    again = cache.stage("plan", {"model": "mine"}, maker("mine again"), subject="s")
    assert (again.hit, again.read("file")) == (False, b"mine again")
    assert any("another's" in text for text in again.changed)
    assert cache.stage("plan", {"model": "theirs"}, maker("never")).hit
    last = cache.stage("plan", {"model": "mine"}, maker("never"), subject="s")
    assert (last.hit, last.changed) == (True, ())


def test_an_entry_of_another_stage_is_none_of_this_one(cache: Cache) -> None:
    graph, plan = cache.stage("graph", {"x": 1}, maker("graph")), cache.stage("plan", {"x": 1}, maker("plan"))
    shutil.rmtree(plan.folder)
    shutil.copytree(graph.folder, plan.folder)
    assert not cache.stage("plan", {"x": 1}, maker("plan")).hit


@pytest.mark.parametrize(
    "change", ["a file more", "a file less", "a folder's link", "another content", "no entry.json"]
)
def test_an_entry_that_is_not_as_it_was_written_is_made_anew(cache: Cache, change: str) -> None:
    entry = cache.stage("a", {"x": 1}, maker("one"))
    if change == "a file more":
        (entry.folder / "more").write_text("")
    elif change == "a file less":
        (entry.folder / "file").unlink()
    elif change == "another content":
        (entry.folder / "file").write_text("two")
    elif change == "no entry.json":
        (entry.folder / "entry.json").unlink()
    else:
        entry.folder.rename(entry.folder.with_name("elsewhere"))
        (entry.folder.with_name("elsewhere") / "file").write_text("two")
        entry.folder.symlink_to("elsewhere")
    again = cache.stage("a", {"x": 1}, maker("one"))
    assert (again.hit, again.read("file")) == (False, b"one")
    assert any("made anew" in text for text in again.changed)


def put(place: Path, kind: str) -> None:
    """Something that is no file, where a file or folder was."""
    shutil.rmtree(place, ignore_errors=True)
    place.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "socket":
        here = os.getcwd()
        os.chdir(place.parent)  # a socket's path must be short
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(place.name)
        os.chdir(here)
    elif kind == "link to a device":
        place.symlink_to("/dev/zero")
    elif kind == "link to nowhere":
        place.symlink_to("nowhere")
    elif kind == "link to itself":
        place.symlink_to(place.name)
    else:
        place.mkdir()


KINDS = ["pipe", "socket", "link to a device", "link to nowhere", "link to itself", "folder"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_file_is_not_read(cache: Cache, kind: str) -> None:
    entry = cache.stage("a", {"x": 1}, maker("one"), subject="s")
    places = [entry.folder / "file", entry.folder / "entry.json", *(cache.root / "last").iterdir()]
    places += [entry.folder] if kind != "folder" else []
    for place in places:
        put(place, kind)
        with in_time(20):
            again = cache.stage("a", {"x": 1}, maker("one"), subject="s")
        assert again.read("file") == b"one"
        assert cache.stage("a", {"x": 1}, maker("one"), subject="s").hit


@pytest.mark.parametrize("kind", KINDS)
def test_a_lock_that_is_no_file_is_not_waited_for(cache: Cache, kind: str) -> None:
    entry = cache.stage("a", {"x": 1}, maker("one"))
    put(entry.folder.with_name(f"{entry.key}.lock"), kind)
    with in_time(20), suppress(OutputError):
        assert cache.stage("a", {"x": 1}, maker("one")).hit


@pytest.mark.parametrize("kind", KINDS)
def test_kept_bytes_that_are_no_file_are_none(tmp_path: Path, kind: str) -> None:
    put(tmp_path / "kept", kind)
    with in_time(20):
        kept = Kept(tmp_path / "kept", "test", limit=1000)
        assert kept.load() == b""
        kept.keep(b"bytes")  # told in `state` where it cannot be
    if kind != "folder":
        assert Kept(tmp_path / "kept", "test", limit=1000).load() == b"bytes"


def test_hashes_are_of_files_alone(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with in_time(20), pytest.raises(NotRegularError, match="FIFO"):
        sha256_of(tmp_path / "pipe")


def test_drafts_of_killed_runs_are_removed_whatever_they_were_for(tmp_path: Path) -> None:
    root = Cache(tmp_path / "cache").root
    left = root / "a" / f".{'0' * 64}.abcd1234.partial"
    left.mkdir(parents=True)
    (left / "half").write_text("")
    Cache(tmp_path / "cache").stage("a", {"x": 1}, maker("one"))
    assert not left.exists()


def test_a_user_without_a_home_has_a_cache_that_nobody_else_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("TRTSHIP_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", nobody)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    place = cache_root()
    assert place.parent == tmp_path
    assert place.stat().st_mode & 0o777 == 0o700
    assert cache_root() == place
    place.chmod(0o777)
    with pytest.raises(OutputError, match="no place for the cache"):
        cache_root()
    place.rmdir()
    place.symlink_to(tmp_path)
    with pytest.raises(OutputError, match="no place for the cache"):
        cache_root()
