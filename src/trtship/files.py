"""Files and folders that are either whole or not there, and their hashes."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trtship.errors import OutputError


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def explain_os_error(error: OSError, path: Path) -> OutputError:
    """The user's message for a full disk, missing permission and the like, met while writing `path`."""
    remedy = {
        errno.ENOSPC: "free some space, or write to another disk",
        errno.EDQUOT: "free some of your quota, or write to another disk",
        errno.EACCES: "choose a folder that you may write to, or mend its permissions",
        errno.EPERM: "choose a folder that you may write to, or mend its permissions",
        errno.EROFS: "choose a folder on a disk that is not read-only",
        errno.ENOTDIR: "a part of the path is a file: choose another path",
    }.get(error.errno or 0, "choose another path")
    return OutputError(f"cannot write {path}", why=error.strerror or str(error), do=remedy)


@contextmanager
def whole_folder(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """A temporary folder beside `target`, renamed to it when the block ends well, removed when it does not.

    With `replace`, what stood at `target` is moved aside first and removed afterwards. Raises OutputError.
    """
    target = target.absolute()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    except OSError as error:
        raise explain_os_error(error, target) from error
    try:
        yield draft
        draft.chmod(0o755)
        _swap_in(draft, target, replace=replace)
    except OSError as error:
        if error.filename is not None and not str(error.filename).startswith(str(target.parent)):
            raise
        raise explain_os_error(error, target) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _swap_in(draft: Path, target: Path, *, replace: bool) -> None:
    if replace and target.exists():
        aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".old", dir=target.parent))
        try:
            os.rename(target, aside / "old")
            try:
                os.rename(draft, target)
            except OSError:
                os.rename(aside / "old", target)
                raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    else:
        os.rename(draft, target)


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """A temporary path beside `target`, renamed to it when the block ends well, removed when it does not."""
    target = target.absolute()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent)
        os.close(handle)
    except OSError as error:
        raise explain_os_error(error, target) from error
    draft = Path(name)
    try:
        yield draft
        draft.chmod(0o644)
        os.replace(draft, target)
    except OSError as error:
        if error.filename is not None and not str(error.filename).startswith(str(target.parent)):
            raise
        raise explain_os_error(error, target) from error
    finally:
        draft.unlink(missing_ok=True)


def refuse_to_replace(target: Path, *, force: bool) -> None:
    """Raises OutputError when a file stands at `target` and `force` is not given, or a folder in any case."""
    if target.is_dir():
        raise OutputError(f"{target} is a folder", why="a file is to be written there", do="choose another -o")
    if target.exists() and not force:
        raise OutputError(f"{target} exists", do="--force replaces it, or choose another -o")


def cache_root() -> Path:
    """`$TRTSHIP_CACHE`, or `trtship` under `$XDG_CACHE_HOME` or `~/.cache`."""
    if own := os.environ.get("TRTSHIP_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trtship"
