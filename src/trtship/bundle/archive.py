"""A bundle as one file, and back: a zip whose names, kinds and sizes are checked before anything is written.

    trtship pack swin.trtship           # swin.trtship.zip
    trtship unpack swin.trtship.zip     # swin.trtship

Packing one bundle twice gives the same bytes. What is unpacked is a bundle whose every hash is right, or nothing.
"""

from __future__ import annotations

import os
import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from trtship.bundle.archive_entries import MAX_MIB, check_directory, check_listed, checked_entries, refused
from trtship.bundle.bundle import Bundle, manifest_bytes
from trtship.bundle.limits import MAX_MANIFEST_BYTES, MAX_OTHER_BYTES, check_manifest_size
from trtship.bundle.manifest import Manifest, files_listed, read_manifest
from trtship.bundle.names import MANIFEST, SIGNATURE
from trtship.bundle.replacing import replaceable_bundle
from trtship.bundle.signature import Trust, open_trusted
from trtship.errors import BundleCorruptError, BundleError, OutputError
from trtship.files import (
    check_room,
    check_writable,
    copy_hashed,
    named_path,
    open_regular,
    read_bounded,
    refuse_to_replace,
    whole_file,
    whole_folder,
    writing,
)
from trtship.progress import SILENT, Progress

SUFFIX = ".zip"
NO_TIME = (1980, 1, 1, 0, 0, 0)
"""The earliest that a zip can tell: when a file was written is no part of a bundle."""


def pack_bundle(
    bundle: Bundle, target: str | Path | None = None, *, force: bool = False, progress: Progress = SILENT
) -> Path:
    """Write the bundle's manifest, the files that it lists and its signature to a zip; returns its path, by default
    the folder's with `.zip` behind it.

    Raises OutputError (it exists, and not `force`), BundleCorruptError where a file changed since it was opened.
    """
    folder = bundle.folder.absolute()
    path = folder.with_name(folder.name + SUFFIX) if target is None else Path(target)
    if path.absolute().is_relative_to(folder):
        raise OutputError(f"{path} is in the bundle itself", why="it would have to hold itself", do="choose another")
    refuse_to_replace(path, force=force)
    if path.exists() and not is_packed_bundle(path):
        raise OutputError(
            f"{path} is not a packed bundle", why="--force replaces packed bundles alone", do="choose another path"
        )
    extra = _extra_files(bundle)
    names = sorted([*bundle.manifest.files, *extra])
    with whole_file(path) as draft, progress.stage("pack", path.name), zipfile.ZipFile(draft, "w") as archive:
        for index, name in enumerate(names):
            progress.step(index / len(names), name)
            entry = zipfile.ZipInfo(name, NO_TIME)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, (stat.S_IFREG | 0o644) << 16
            with archive.open(entry, "w", force_zip64=True) as packed:
                if name in bundle.manifest.files:
                    bundle.copy(name, packed)
                else:
                    packed.write(extra[name])
    return path


def _extra_files(bundle: Bundle) -> dict[str, bytes]:
    """The manifest as it is on disk, which the signature covers byte for byte, and the signature.

    Raises BundleCorruptError where the manifest is not the opened one any more.
    """
    found = {MANIFEST: manifest_bytes(bundle.folder)}
    if read_manifest(found[MANIFEST], where=str(bundle.folder / MANIFEST)) != bundle.manifest:
        raise BundleCorruptError(
            f"{bundle.folder / MANIFEST} cannot be trusted",
            why="it changed after the bundle was opened",
            do="pack the bundle again",
        )
    with suppress(FileNotFoundError), open_regular(bundle.folder / SIGNATURE) as file:
        found[SIGNATURE] = read_bounded(file, MAX_OTHER_BYTES)
    return found


def unpack_bundle(
    archive: str | Path,
    target: str | Path | None = None,
    *,
    force: bool = False,
    max_mib: int = MAX_MIB,
    trust: Trust | None = None,
    progress: Progress = SILENT,
) -> Bundle:
    """Write the bundle in a zip to the folder `target`, by default the archive's path without `.zip`, and open it.

    With `trust` it must be signed. Raises BundleSignatureError; BundleError for what is no such zip, names a path out
    of its folder, holds links or other things that are no plain files, or more than `max_mib`; BundleCorruptError where
    a hash is wrong; OutputError where the folder exists (`force` replaces a bundle) or cannot be written.
    """
    archive = named_path(archive, "the archive")
    folder = None if target is None else named_path(target, "the folder")
    folder = _check_place(folder, archive, force=force)
    with _reading(archive), open_regular(archive) as file:
        check_directory(file, archive)
        with zipfile.ZipFile(file) as packed:
            entries = checked_entries(packed, archive, max_mib)
            manifest = _manifest_of(packed, archive)
            check_listed(entries, manifest.files, archive)
            check_room(folder, sum(entry.file_size for entry in entries))
            replace = replaceable_bundle if force else False
            with whole_folder(folder, replace=replace) as draft, progress.stage("unpack", archive.name):
                for index, entry in enumerate(entries):
                    progress.step(index / len(entries), entry.filename)
                    _write(packed, entry, draft, manifest.files.get(entry.filename), archive)
                opened = open_trusted(draft, trust, progress=progress).manifest
    return Bundle(folder, opened)


def _manifest_of(packed: zipfile.ZipFile, archive: Path) -> Manifest:
    """Read the manifest, before anything else is. Raises BundleError (and subclasses)."""
    where = f"{MANIFEST} in {archive}"
    check_manifest_size(packed.getinfo(MANIFEST).file_size, where=where)
    with packed.open(MANIFEST) as file:
        return read_manifest(file.read(MAX_MANIFEST_BYTES + 1), where=where)


def _write(packed: zipfile.ZipFile, entry: zipfile.ZipInfo, draft: Path, digest: str | None, archive: Path) -> None:
    """Write one file. Raises BundleCorruptError where its SHA-256 is not `digest`, the manifest's."""
    path = draft / PurePosixPath(entry.filename)
    with packed.open(entry) as file, writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as out:
            found = copy_hashed(file, out)
    if digest is not None and found != digest:
        raise BundleCorruptError(
            f"{entry.filename} in {archive} cannot be trusted",
            why="its SHA-256 is not the manifest's: it was changed or damaged",
            do="copy it again from where it was packed",
        )


def is_packed_bundle(path: Path) -> bool:
    """Return whether a file is a zip that `pack_bundle` may have written: one with a manifest of ours."""
    try:
        with _reading(path), open_regular(path) as file:
            check_directory(file, path)
            with zipfile.ZipFile(file) as packed:
                data = packed.open(MANIFEST).read(MAX_MANIFEST_BYTES + 1)
        return files_listed(data) is not None
    except (OSError, KeyError, BundleError):
        return False


def _check_place(folder: Path | None, archive: Path, *, force: bool) -> Path:
    """Return where to unpack to: `folder`, or by default the archive's path without `.zip`.

    Raises BundleError for what is no file, OutputError for a place that cannot be written.
    """
    if not archive.is_file():
        why = "it is a folder" if archive.is_dir() else "there is no such file"
        raise BundleError(f"{archive} is no packed bundle", why=why, do="trtship pack BUNDLE makes one")
    if folder is None:
        # a file that is named `.zip` alone is its own default, which is refused below
        folder = archive.with_name(archive.name.removesuffix(SUFFIX) or archive.name)
    if folder.absolute() == archive.absolute():
        raise OutputError(
            f"{archive} has no other name to unpack to", why=f"it does not end in {SUFFIX}", do="name a folder with -o"
        )
    if os.path.lexists(folder) and not force:
        raise OutputError(
            f"{folder} exists", why="it is not replaced unasked", do="--force replaces it, or choose another path"
        )
    if os.path.lexists(folder):
        replaceable_bundle(folder)
    check_writable(folder)
    return folder


@contextmanager
def _reading(archive: Path) -> Iterator[None]:
    """What zipfile says of damage, in our words."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, UnicodeDecodeError) as error:
        raise refused(archive, f"the zip is damaged: {error}") from error
