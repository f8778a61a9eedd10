"""Bundles that an attacker edited and hashed again: a whole one with other values."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from trtship.bundle.manifest import _digest
from trtship.spec import to_json


def plain_manifest(folder: Path) -> dict[str, Any]:
    return dict(msgspec.json.decode((folder / "manifest.json").read_bytes()))


def write_plain(folder: Path, plain: dict[str, Any]) -> None:
    """Write a manifest of any values, with its seal and the hashes of the files as they are now."""
    for name in plain["files"] if isinstance(plain.get("files"), dict) else ():
        path = folder / str(name).replace("\0", "_")[:200]
        if path.is_file() and path.is_relative_to(folder) and ".." not in str(name):
            plain["files"][name] = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / "manifest.json").write_bytes(to_json({**plain, "seal": _digest({**plain, "seal": ""})}))


def rehashed(folder: Path, **changes: Any) -> Path:
    """The bundle with these values of its manifest, `a__b` for the key `b` of the value `a`."""
    plain = plain_manifest(folder)
    for key, value in changes.items():
        *outer, last = key.split("__")
        place: Any = plain
        for name in outer:
            place = place[int(name) if isinstance(place, list) else name]
        place[int(last) if isinstance(place, list) else last] = value
    write_plain(folder, plain)
    return folder


def copy(bundle: Path, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "copy.trtship"
    shutil.rmtree(target, ignore_errors=True)
    return Path(shutil.copytree(bundle, target))


Path_ = tuple[str | int, ...]


def places(value: Any, at: Path_ = ()) -> Iterator[Path_]:
    """Every place in a JSON value, its keys and indices."""
    if at:
        yield at
    if isinstance(value, dict):
        for key, item in value.items():
            yield from places(item, (*at, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from places(item, (*at, index))


def put(value: Any, at: Path_, new: Any) -> Any:
    """A JSON value with another one at a place."""
    if not at:
        return new
    if isinstance(value, dict):
        return {key: put(item, at[1:], new) if key == at[0] else item for key, item in value.items()}
    return [put(item, at[1:], new) if index == at[0] else item for index, item in enumerate(value)]
