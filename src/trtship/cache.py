"""The stage cache: what a stage made, found again by everything that went into it.

An entry is a folder named after the SHA-256 of its stage and inputs. It is written beside its place and renamed
there, under a lock, so that concurrent runs neither clash nor work twice. It is used again only where the key of the
inputs that it records is the key that is asked for, and its files have the hashes that it records: an entry that was
damaged, or put in the place of another, is made anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
from filelock import FileLock, Timeout

from trtship.errors import OutputError, SpecError
from trtship.files import cache_root, read_regular, sha256_of, sweep_drafts, whole_file, whole_folder
from trtship.spec import Record, from_json, to_json

FORMAT = 6
"""Part of every key: raise it when the code of a stage changes what a stage makes."""


class EntryRecord(Record, frozen=True):
    """`entry.json`: the inputs that the key is made of, the SHA-256 of each file, and how long it took to make them."""

    stage: str
    inputs: dict[str, Any]
    files: dict[str, str]
    seconds: float


class Entry(msgspec.Struct, frozen=True):
    """A stage's result, which took `seconds` to make when it was made. `changed` says what differs from the last run of
    the same stage for the same subject."""

    folder: Path
    key: str
    hit: bool
    changed: tuple[str, ...]
    files: dict[str, str]
    seconds: float

    def read(self, name: str) -> bytes:
        """A file's bytes, whose hash is checked as they are now. Raises OutputError where they were changed."""
        data = read_regular(self.folder / name)
        if hashlib.sha256(data).hexdigest() != self.files[name]:
            raise OutputError(
                f"{self.folder / name} changed after it was cached",
                why="its SHA-256 is not the one recorded",
                do=f"remove the folder {self.folder} and run again",
            )
        return data


class Cache:
    """Entries below `root` (default: `files.cache_root()`)."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = (root or cache_root()) / f"stages-{FORMAT}"

    def stage(self, name: str, inputs: Mapping[str, Any], make: Callable[[Path], None], *, subject: str = "") -> Entry:
        """The entry for `inputs`, made by `make(folder)` where there is none.

        `inputs` are plain JSON values, and must hold all that the result depends on. `subject` names what is being
        made, so that `changed` can compare with its previous run.
        """
        key = key_of(name, inputs)
        folder = self.root / name / key
        changed = self._changes(name, subject, inputs)
        with self._locked(folder.parent / f"{key}.lock"):
            sweep_drafts(folder.parent)
            entry, fault = self._found(folder, key)
            hit = entry is not None
            if entry is None:
                if fault:
                    changed = (*changed, fault)
                    _discard(folder)
                entry = self._fill(folder, name, inputs, make)
        self._remember(name, subject, inputs)
        return Entry(folder, key, hit, changed, entry.files, entry.seconds)

    def knows(self, name: str, inputs: Mapping[str, Any]) -> bool:
        """Whether there is an entry for `inputs`; whether it is whole, `stage` finds out."""
        return (self.root / name / key_of(name, inputs) / "entry.json").is_file()

    @contextmanager
    def turn(self, subject: str, *, waiting: Callable[[], None]) -> Iterator[None]:
        """Alone with `subject` among all runs that share this cache; `waiting` is called before a wait for another."""
        with self._locked(self.root / "turns" / f"{_digest(subject)}.lock", waiting):
            yield

    @contextmanager
    def _locked(self, path: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
        lock = FileLock(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                waiting()
                lock.acquire()
        except OSError as error:
            raise OutputError(
                f"cannot write to the cache in {self.root}",
                why=f"{error.filename}: {error.strerror}" if error.filename else str(error),
                do="set TRTSHIP_CACHE to a folder that you may write to, or free some space",
            ) from error
        try:
            yield
        finally:
            lock.release()

    def _found(self, folder: Path, key: str) -> tuple[EntryRecord | None, str]:
        """The entry at a key's place; else None, and what is wrong with what stands there."""
        if not os.path.lexists(folder):
            return None, ""
        try:
            entry = from_json(read_regular(folder / "entry.json"), EntryRecord, what="a cache entry")
            found = {str(file.relative_to(folder)) for file in folder.rglob("*") if not file.is_dir()}
            if key_of(entry.stage, entry.inputs) != key:
                return None, "the cached entry was another's, and is made anew"
            if found == {*entry.files, "entry.json"} and all(
                sha256_of(folder / file) == digest for file, digest in entry.files.items()
            ):
                return entry, ""
        except (OSError, SpecError):
            pass
        return None, "the cached entry was damaged, and is made anew"

    def _fill(self, folder: Path, name: str, inputs: Mapping[str, Any], make: Callable[[Path], None]) -> EntryRecord:
        begun = time.monotonic()
        with whole_folder(folder) as draft:
            make(draft)
            seconds = round(time.monotonic() - begun, 2)
            files = {str(p.relative_to(draft)): sha256_of(p) for p in sorted(draft.rglob("*")) if p.is_file()}
            entry = EntryRecord(stage=name, inputs=dict(inputs), files=files, seconds=seconds)
            (draft / "entry.json").write_bytes(to_json(entry))
        return entry

    def _last(self, name: str, subject: str) -> Path:
        return self.root / "last" / f"{name}-{_digest(subject)}.json"

    def _changes(self, name: str, subject: str, inputs: Mapping[str, Any]) -> tuple[str, ...]:
        try:
            before = json.loads(read_regular(self._last(name, subject)))
        except (OSError, ValueError):
            return ("first run",)
        return describe_changes(before, inputs) if isinstance(before, dict) else ("first run",)

    def _remember(self, name: str, subject: str, inputs: Mapping[str, Any]) -> None:
        last = self._last(name, subject)
        if not last.is_file():
            _discard(last)
        with whole_file(last) as draft:
            draft.write_bytes(to_json(dict(inputs)))


def _discard(place: Path) -> None:
    """Remove whatever stands at a place in the cache: a folder, a file, a link, a pipe."""
    with suppress(OSError):
        place.unlink()
        return
    shutil.rmtree(place, ignore_errors=True)  # of a folder alone: it would wait for a pipe's writer


def _digest(subject: str) -> str:
    return hashlib.sha256(os.fsencode(subject)).hexdigest()[:32]


def key_of(name: str, inputs: Mapping[str, Any]) -> str:
    """Hex SHA-256 over the stage's name, the cache's format and the inputs as canonical JSON."""
    return hashlib.sha256(to_json([FORMAT, name, dict(inputs)])).hexdigest()


def describe_changes(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> tuple[str, ...]:
    """`("opset: 18 -> 20", ...)`, dotted names for nested values."""
    found: list[str] = []
    for name in sorted({*before, *after}):
        old, new = before.get(name), after.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += describe_changes(old, new, f"{prefix}{name}.")
        elif json.loads(to_json(old)) != json.loads(to_json(new)):
            found.append(f"{prefix}{name}: {_short(old)} -> {_short(new)}")
    return tuple(found)


def _short(value: object) -> str:
    text = "none" if value is None else value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
