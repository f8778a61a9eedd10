"""What `--force` may replace: what is proven to be ours, and has no file that we did not write."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path, PurePosixPath

from trtship.bundle.bundle import manifest_bytes
from trtship.bundle.manifest import files_listed
from trtship.bundle.names import MANIFEST, REPORT, SIGNATURE
from trtship.errors import BundleError, OutputError

DRAFT = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}\.partial")
"""What a run that was killed leaves (`trtship.files.draft_beside`)."""


def replaceable_bundle(folder: Path, *, option: str = "path") -> None:
    """Check that a folder is a bundle with the files that its manifest lists alone, whole or damaged; or is empty.

    `option` is what the user names the folder by, for messages.

    Raises:
        OutputError: it is something else, or has another file, which the message names.
    """
    proof = f"it has no {MANIFEST} that trtship wrote"
    require_only_ours(folder, _bundle_files, kind="bundle", proof=proof, option=option)


def require_only_ours(
    folder: Path, files_of: Callable[[Path], Collection[str] | None], *, kind: str, proof: str, option: str = "path"
) -> None:
    """Check that everything below `folder` was written by trtship, before the folder is replaced whole.

    Args:
        folder: what is to be replaced. An empty folder may be.
        files_of: the files that belong there, as relative paths; None where nothing proves that it is ours.
        kind: what it is to be, for messages.
        proof: what is missing where `files_of` gives None.
        option: what the user names the folder by, for messages.

    Raises:
        OutputError: it is something else, or has another file, which the message names.
    """
    do = f"choose another {option}, or remove it yourself"
    if folder.is_symlink() or not folder.is_dir():
        why = "it is a link" if folder.is_symlink() else "it is not a folder"
        raise OutputError(f"{folder} exists and is no {kind}", why=f"{why}; --force replaces a {kind} alone", do=do)
    if next(os.scandir(folder), None) is None:
        return
    ours = files_of(folder)
    if ours is None:
        raise OutputError(f"{folder} exists and is no {kind}", why=f"{proof}; --force replaces a {kind} alone", do=do)
    stray = next((name for name in _files_below(folder) if name not in ours and not _is_draft(name, ours)), None)
    if stray is not None:
        raise OutputError(
            f"{folder} is not replaced",
            why=f"{stray!r} is in it, which is no part of the {kind}, and would be lost",
            do=f"move {stray!r} elsewhere, or choose another {option}",
        )


def _bundle_files(folder: Path) -> Collection[str] | None:
    try:
        listed = files_listed(manifest_bytes(folder))
    except BundleError:
        return None
    return None if listed is None else {*listed, MANIFEST, REPORT, SIGNATURE}


def _files_below(folder: Path) -> Iterator[str]:
    """Every file, link, FIFO and so on, as a relative path; links to folders are not followed."""
    for root, folders, files in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(root, name))]
        for name in (*files, *links):
            yield Path(root, name).relative_to(folder).as_posix()


def _is_draft(name: str, ours: Collection[str]) -> bool:
    """Whether a file is in the draft of one of ours."""
    parts = PurePosixPath(name).parts
    for depth, part in enumerate(parts):
        if (found := DRAFT.fullmatch(part)) and str(PurePosixPath(*parts[:depth], found["name"])) in ours:
            return True
    return False
