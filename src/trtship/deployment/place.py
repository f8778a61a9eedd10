"""Where the bundle goes: may it be written there, and what stands there already?"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from trtship.bundle.bundle import Bundle
from trtship.bundle.candidates import choice_of
from trtship.bundle.replacing import replaceable_bundle
from trtship.cache import describe_changes
from trtship.errors import BundleError, OutputError
from trtship.progress import Progress


def check_place(output: Path, *, option: str = "-o") -> None:
    """Raises OutputError early where a bundle could not be written, or would replace something that is not ours."""
    parent = output.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        why = "it is a file" if not parent.is_dir() else "no write permission"
        raise OutputError(f"cannot write {output}", why=f"{parent}: {why}", do="choose a folder that you may write to")
    if os.path.lexists(output):
        replaceable_bundle(output, option=option)


def compare_with_standing(
    output: Path, recipe: dict[str, Any], *, force: bool, progress: Progress
) -> tuple[tuple[str, ...], Bundle | None]:
    """What changed since the bundle at `output` was made, and that bundle when nothing did."""
    if not output.exists() or not any(output.iterdir()):
        return ("first run",), None
    try:
        standing = Bundle.open(output, progress=progress)
    except BundleError as error:
        if not force:
            raise OutputError(
                f"{output} exists", why=error.what, do="--force replaces it, or choose another -o"
            ) from error
        return (f"the bundle that stood there could not be used: {error.what}",), None
    failed = [f"{v.subject}, {v.gate} failed" for v in standing.manifest.verdicts if v.state == "failed"]
    changed = (*describe_changes(standing.manifest.recipe, recipe), *failed)
    if not changed:
        choice = choice_of(standing)
        if choice is None or choice.complete:
            return (), standing
        return ("its search for a precision ended with its time budget, and goes on now",), None
    if not force:
        raise OutputError(
            f"{output} exists, and is not what was asked for",
            why="; ".join(changed[:5]) + (f"; and {len(changed) - 5} more" if len(changed) > 5 else ""),
            do="--force replaces it, or choose another -o",
        )
    return changed, None
