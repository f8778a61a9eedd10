"""Names of files in a bundle: the fixed ones, and which others a manifest or an archive may list."""

from __future__ import annotations

from pathlib import PurePosixPath

MANIFEST = "manifest.json"
REPORT = "report.html"
SIGNATURE = "model.sig"
"""Covers all other files, where there is one (`trtship.bundle.signature`); the manifest does not list it."""
MAX_NAME_BYTES = 255
"""Of one part of a path: what Linux's file systems take."""
MAX_PATH_BYTES = 1024
MAX_DEPTH = 16
"""Folders below the bundle's own; a deploy writes two at most."""


def leads_out(name: str) -> bool:
    """Return whether a path is absolute or goes up."""
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts


def fault_of(name: str) -> str:
    """Return why no file of a bundle has this name; empty where one may."""
    path = PurePosixPath(name)
    if not name or leads_out(name) or str(path) != name or name == ".":
        return "leads out of the folder, or is not a plain path"
    if not name.isprintable() or "\\" in name or ":" in name:
        return "is no name for a file on every system"
    encoded = [len(part.encode("utf-8", "surrogatepass")) for part in path.parts]
    if max(encoded) > MAX_NAME_BYTES or sum(encoded) > MAX_PATH_BYTES or len(encoded) > MAX_DEPTH:
        return "is too long for a path in a bundle"
    return ""


def twice(names: list[str]) -> str | None:
    """Return a name that is there twice for a system that does not tell upper from lower case, or that is a folder of
    another; None where there is none."""
    folded = [name.casefold() for name in names]
    seen: set[str] = set()
    for name in folded:
        if name in seen:
            return name
        seen.add(name)
    for name in folded:
        for parent in PurePosixPath(name).parents:
            if str(parent) in seen:
                return str(parent)
    return None
