"""The directory of a zip, checked before anything of it is unpacked: its size, and each entry's name, kind and place.

A zip ends in a record that tells where its directory is and how many entries that has (APPNOTE.TXT 4.3.16, and 4.3.14
for zip64). Python's zipfile reads the directory whole and makes an object of each entry, so that the record is read
here first.
"""

from __future__ import annotations

import os
import stat
import struct
import zipfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import BinaryIO

from trtship.bundle.limits import MAX_FILES
from trtship.bundle.names import MANIFEST, SIGNATURE, fault_of, twice
from trtship.errors import BundleError

MAX_MIB = 16384
"""Of all files of a bundle together, unless told otherwise: a few bytes of zip can stand for terabytes."""
MAX_ENTRIES = 2 * MAX_FILES
"""Files, and folders, which other tools write as entries of their own."""
MAX_DIRECTORY_BYTES = 8 * 2**20
"""Of the directory: 46 bytes an entry, its name, and what tools add; 400 an entry in all."""
END, END64, LOCATOR64 = struct.Struct("<4s4H2LH"), struct.Struct("<4sQ2H2L4Q"), struct.Struct("<4sLQL")
LOCAL_HEADER = 30


def check_directory(file: BinaryIO, archive: Path) -> None:
    """Check the record at the end of a zip. Raises BundleError for more entries than are taken, and for what is no zip,
    or one with a comment, which `pack` does not write."""
    size = file.seek(0, os.SEEK_END)
    if size < END.size:
        raise refused(archive, "it is not a zip: it is too short")
    file.seek(size - END.size)
    record = END.unpack(file.read(END.size))
    signature, entries, directory, offset, comment = record[0], record[4], record[5], record[6], record[7]
    if signature != b"PK\x05\x06" or comment:
        raise refused(archive, "it is not a zip, or the zip is damaged: it does not end in a zip's last record")
    end = size - END.size
    if end >= LOCATOR64.size + END64.size:
        file.seek(end - LOCATOR64.size - END64.size)
        record64, locator = END64.unpack(file.read(END64.size)), LOCATOR64.unpack(file.read(LOCATOR64.size))
        if locator[0] == b"PK\x06\x07":
            end -= LOCATOR64.size + END64.size
            if record64[0] != b"PK\x06\x06" or locator[2] != end:
                raise refused(archive, "the zip is damaged: its two last records do not fit")
            entries, directory, offset = record64[7], record64[8], record64[9]
    if entries > MAX_ENTRIES or directory > MAX_DIRECTORY_BYTES:
        raise refused(archive, f"it has {entries} entries, and a bundle has no more than {MAX_FILES} files")
    if offset + directory != end:
        raise refused(archive, "the zip is damaged: its directory is not where its last record says")


def checked_entries(packed: zipfile.ZipFile, archive: Path, max_mib: int) -> list[zipfile.ZipInfo]:
    """Return the files, the smallest first, every one of a name, a kind, a place and a size that may be written.

    Raises BundleError.
    """
    entries = packed.infolist()
    for entry in entries:
        if why := _fault_of(entry):
            raise refused(archive, f"{entry.filename!r} {why}")
    files = [entry for entry in entries if not entry.is_dir()]
    if len(files) > MAX_FILES:
        raise refused(archive, f"it has {len(files)} files, and a bundle has no more than {MAX_FILES}")
    if (name := twice([entry.filename for entry in files])) is not None:
        raise refused(archive, f"{name!r} is in it twice")
    if MANIFEST not in {entry.filename for entry in files}:
        raise refused(archive, f"it has no {MANIFEST}")
    _check_places(entries, packed.start_dir, archive)
    size = sum(entry.file_size for entry in files) / 2**20
    if size > max_mib:
        raise refused(archive, f"it holds {size:.0f} MiB, and {max_mib} are taken", do="--max-mib takes more")
    return sorted(files, key=lambda entry: entry.file_size)


def check_listed(entries: Sequence[zipfile.ZipInfo], files: Collection[str], archive: Path) -> None:
    """Check that the archive has the files that its manifest lists and no others. Raises BundleError."""
    names = {entry.filename for entry in entries}
    if strange := sorted(names - {MANIFEST, SIGNATURE, *files}):
        raise refused(archive, f"its manifest does not list {strange[0]!r}")
    if missing := sorted(set(files) - names):
        raise refused(archive, f"{missing[0]} cannot be trusted: it is missing")


def _fault_of(entry: zipfile.ZipInfo) -> str:
    """Why an entry must not be written; empty where it may be."""
    name, kind = entry.filename, stat.S_IFMT(entry.external_attr >> 16)
    if not name or name == "/":
        return "leads out of the folder, or is no plain path: it has no name"
    if name != entry.orig_filename:
        return "is no name for a file on every system"
    if why := fault_of(name.removesuffix("/")):
        return why
    if kind not in (0, stat.S_IFDIR if entry.is_dir() else stat.S_IFREG):
        return "is a link, or another thing that is no plain file"
    if entry.flag_bits & 0x1:
        return "is encrypted"
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "is compressed in a way that is not taken"
    return ""


def _check_places(entries: Sequence[zipfile.ZipInfo], end: int, archive: Path) -> None:
    """Raises BundleError for entries whose bytes overlap, or reach into the directory at `end`."""
    at = 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        if entry.header_offset < at:
            raise refused(archive, f"{entry.filename!r} shares its bytes with another entry")
        at = entry.header_offset + LOCAL_HEADER + entry.compress_size
    if at > end:
        raise refused(archive, "the zip is damaged: an entry ends behind the others")


def refused(archive: Path, why: str, *, do: str = "copy it again from where it was packed") -> BundleError:
    """Return the error of an archive that is not unpacked."""
    return BundleError(f"{archive} is not unpacked", why=why, do=do)
