"""A bundle as one file, and back: a zip whose names, kinds and sizes are checked before anything is written.

    trtship pack swin.trtship           # swin.trtship.zip
    trtship unpack swin.trtship.zip     # swin.trtship

Packing one bundle twice gives the same bytes. What is unpacked is a bundle whose every hash is right, or nothing.
"""

from __future__ import annotations

import hashlib
import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from trtship.bundle.bundle import MANIFEST, SIGNATURE, Bundle
from trtship.bundle.signature import Trust, open_trusted
from trtship.errors import BundleCorruptError, BundleError, OutputError
from trtship.files import check_writable, named_path, refuse_to_replace, whole_file, whole_folder, writing
from trtship.progress import SILENT, Progress

SUFFIX = ".zip"
MAX_MIB = 16384
"""Of all files of a bundle together, unless told otherwise: a few bytes of zip can stand for terabytes."""
MAX_FILES = 10_000
CHUNK = 2**20
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
    signed = [SIGNATURE] if (folder / SIGNATURE).is_file() else []
    names = sorted([*bundle.manifest.files, MANIFEST, *signed])
    with whole_file(path) as draft, progress.stage("pack", path.name), zipfile.ZipFile(draft, "w") as archive:
        for index, name in enumerate(names):
            progress.step(index / len(names), name)
            entry = zipfile.ZipInfo(name, NO_TIME)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, (stat.S_IFREG | 0o644) << 16
            source = bundle.path(name) if name in bundle.manifest.files else folder / name
            with source.open("rb") as file, archive.open(entry, "w", force_zip64=True) as packed:
                digest = _copied(file, packed)
            if digest != bundle.manifest.files.get(name, digest):
                raise BundleCorruptError(
                    f"{source} cannot be trusted", why="it changed while it was packed", do="pack the bundle again"
                )
    return path


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
    folder = (
        named_path(target, "the folder") if target is not None else archive.with_name(archive.name.removesuffix(SUFFIX))
    )
    _check_place(folder, archive, force=force)
    with _reading(archive), zipfile.ZipFile(archive) as packed:
        entries = _checked(packed, archive, max_mib)
        with whole_folder(folder, replace=force) as draft, progress.stage("unpack", archive.name):
            for index, entry in enumerate(entries):
                progress.step(index / len(entries), entry.filename)
                path = draft / PurePosixPath(entry.filename)
                with packed.open(entry) as file, writing(path):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with path.open("xb") as out:
                        _copied(file, out)
            manifest = open_trusted(draft, trust, progress=progress).manifest
            strange = sorted({entry.filename for entry in entries} - {MANIFEST, SIGNATURE, *manifest.files})
            if strange:
                raise _refused(archive, f"its manifest does not list {strange[0]!r}")
    return Bundle(folder, manifest)


def _check_place(folder: Path, archive: Path, *, force: bool) -> None:
    if not archive.is_file():
        why = "it is a folder" if archive.is_dir() else "there is no such file"
        raise BundleError(f"{archive} is no packed bundle", why=why, do="trtship pack BUNDLE makes one")
    if folder.absolute() == archive.absolute():
        raise OutputError(
            f"{archive} has no other name to unpack to", why=f"it does not end in {SUFFIX}", do="name a folder with -o"
        )
    if folder.exists() and not force:
        raise OutputError(
            f"{folder} exists", why="it is not replaced unasked", do="--force replaces it, or choose another path"
        )
    if folder.exists() and not (folder / MANIFEST).is_file():
        raise OutputError(f"{folder} is no bundle", why="--force replaces bundles alone", do="choose another path")
    check_writable(folder)


def _checked(packed: zipfile.ZipFile, archive: Path, max_mib: int) -> list[zipfile.ZipInfo]:
    """Its files, every one of a name, a kind and a size that may be written."""
    entries = packed.infolist()
    if len(entries) > MAX_FILES:
        raise _refused(archive, f"it has {len(entries)} entries, and a bundle has no more than {MAX_FILES}")
    files = [entry for entry in entries if not entry.is_dir()]
    for entry in entries:
        if why := _fault_of(entry):
            raise _refused(archive, f"{entry.filename!r} {why}")
    names = [entry.filename.casefold() for entry in files]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise _refused(archive, f"{twice!r} is in it twice")
    if MANIFEST not in {entry.filename for entry in files}:
        raise _refused(archive, f"it has no {MANIFEST}")
    size = sum(entry.file_size for entry in files) / 2**20
    if size > max_mib:
        raise _refused(archive, f"it holds {size:.0f} MiB, and {max_mib} are taken", do="--max-mib takes more")
    return files


def _fault_of(entry: zipfile.ZipInfo) -> str:
    """Why an entry must not be written; empty where it may be."""
    name, kind = entry.filename, stat.S_IFMT(entry.external_attr >> 16)
    path = PurePosixPath(name)
    if name != entry.orig_filename or not name.isprintable() or "\\" in name or ":" in name:
        return "is no name for a file on every system"
    if not name or path.is_absolute() or ".." in path.parts or str(path) != name.removesuffix("/"):
        return "leads out of the folder, or is no plain path"
    if kind not in (0, stat.S_IFDIR if entry.is_dir() else stat.S_IFREG):
        return "is a link, or another thing that is no plain file"
    if entry.flag_bits & 0x1:
        return "is encrypted"
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "is compressed in a way that is not taken"
    return ""


@contextmanager
def _reading(archive: Path) -> Iterator[None]:
    """What zipfile says of damage, in our words."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, UnicodeDecodeError) as error:
        raise _refused(archive, f"the zip is damaged: {error}") from error


def _refused(archive: Path, why: str, *, do: str = "copy it again from where it was packed") -> BundleError:
    return BundleError(f"{archive} is not unpacked", why=why, do=do)


def _copied(source: IO[bytes], target: IO[bytes]) -> str:
    """Copy to the end; the hex SHA-256 of it."""
    digest = hashlib.sha256()
    while data := source.read(CHUNK):
        digest.update(data)
        target.write(data)
    return digest.hexdigest()
