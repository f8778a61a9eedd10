"""Files and folders that are either whole or not there, and their hashes."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import IO

from trtship.errors import OutputError, SpecError

ELSEWHERE = "choose a place that you may write to, or mend its permissions"
REMEDIES = {
    errno.EACCES: ELSEWHERE,
    errno.EPERM: ELSEWHERE,
    errno.EROFS: "choose a place on a disk that is not read-only",
    errno.EEXIST: "a part of the path is a file: choose another path",
    errno.ENOTDIR: "a part of the path is a file: choose another path",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f), or write to another disk",
}
COPY_BYTES = 2**20
"""Copied at once."""
DRAFT = r"[a-z0-9_]{8}\.partial"
"""How the name of a draft ends."""
TEMPORARY = re.compile(r"trtship-(?:[a-z]+-)?[0-9a-f]{16}")
"""Names of the folders that `temporary_folder` makes."""
FULL = {errno.ENOSPC, errno.EDQUOT}
"""A disk has no more space, or the user's share of it is used up."""
RENAME_EXCHANGE = 2
"""Of Linux's renameat2, include/uapi/linux/fs.h: both paths change places in one step."""


KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


class NotRegularError(OSError):
    """A FIFO, socket, device or folder stands where a file is to be read."""


@contextmanager
def open_regular(path: str | Path) -> Iterator[BufferedReader]:
    """Open a regular file, after following links, to read its bytes; never wait for one.

    The kind is taken from the opened descriptor, so that nothing can be exchanged between the check and the reading.

    Raises:
        NotRegularError: the path names something else, such as a FIFO or a device.
        OSError: the file cannot be opened.
    """
    # O_NONBLOCK: opening a FIFO would wait for a writer; on a regular file it has no effect
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            kind = KINDS.get(stat.S_IFMT(mode), "no file")
            raise NotRegularError(errno.EINVAL, f"it is {kind}, and a regular file is read", str(path))
        with open(descriptor, "rb", closefd=False) as file:
            yield file
    finally:
        os.close(descriptor)


def read_regular(path: Path) -> bytes:
    """Return a file's bytes; OSError for what is no regular file."""
    with open_regular(path) as file:
        return file.read()


def read_bounded(file: BufferedReader, most: int) -> bytes:
    """Return the bytes of a file as large as it is now, `most` + 1 of them where it is larger than `most`."""
    return file.read(min(os.fstat(file.fileno()).st_size, most) + 1)


def named_path(given: str | os.PathLike[str], what: str) -> Path:
    """Return the path that a caller named. Raises SpecError for an empty one, which would be the current folder (a
    variable that came out empty), and for one that no file can have."""
    text = os.fspath(given)
    if not isinstance(text, str) or not text.strip() or "\0" in text:
        why = "it is empty" if isinstance(text, str) and not text.strip() else "no file can be called that"
        raise SpecError(
            f"{what} {given!r} is not a path", why=why, do="name a file or a folder; '.' is the current one"
        )
    return Path(text)


def sha256_of(path: Path) -> str:
    """Return the hex SHA-256 of a file's bytes; OSError for what is no regular file."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def copy_hashed(source: IO[bytes], target: IO[bytes]) -> str:
    """Copy `source` to its end and return the hex SHA-256 of what was copied."""
    digest = hashlib.sha256()
    while data := source.read(COPY_BYTES):
        digest.update(data)
        target.write(data)
    return digest.hexdigest()


def explain_os_error(error: OSError, path: Path) -> OutputError:
    """Return the user's message for a full disk, missing permission and the like, met while writing `path`."""
    if error.errno in FULL:
        return explain_full_disk(error, path)
    remedy = REMEDIES.get(error.errno or 0, "choose another path")
    return OutputError(f"cannot write {path}", why=error.strerror or str(error), do=remedy)


def explain_full_disk(error: OSError, path: Path) -> OutputError:
    """Return the user's message, which names the disk that is full: that of the file that was written, where the error
    tells it; else whichever of `path`'s, the temporary files' and the cache's has the least space left. To be asked
    before drafts are removed."""
    named = error.filename2 or error.filename  # of a copy, the second one is written
    candidates = [Path(os.fsdecode(named))] if isinstance(named, str | bytes) else _written_places(path)
    free, place = min(((_free(one), one) for one in candidates), key=lambda found: found[0])
    why = f"{error.strerror or error}: the disk of {place} has {_mib(free)} left"
    if error.filename2 is not None and isinstance(error.filename, str | bytes):
        with suppress(OSError):
            why += f", and {_mib(os.stat(error.filename).st_size)} are needed for this file alone"
    return OutputError(f"cannot write {path}", why=why, do=_elsewhere(place))


def check_room(target: Path, needed: int) -> None:
    """Check that the disk of `target` has space for `needed` bytes. Raises OutputError."""
    free = _free(target)
    if needed > free:
        raise OutputError(
            f"cannot write {target}",
            why=f"{os.strerror(errno.ENOSPC)}: {_mib(needed)} are needed, and its disk has {_mib(free)} left",
            do=_elsewhere(target),
        )


def _written_places(path: Path) -> list[Path]:
    places = [path, Path(tempfile.gettempdir()) / "temporary files"]
    with suppress(OutputError):
        places.append(cache_root() / "cache")
    return places


def _elsewhere(place: Path) -> str:
    """What helps where this place's disk is full."""
    where = place.absolute()
    if where.is_relative_to(Path(tempfile.gettempdir()).absolute()):
        return "free some space there, or set TMPDIR to a folder on another disk"
    with suppress(OutputError):
        if where.is_relative_to(cache_root().absolute()):
            return "free some space there, or set TRTSHIP_CACHE to a folder on another disk"
    return "free some space there, or write to another disk"


def _free(place: Path) -> int:
    """Bytes that may be written on the disk of a path, which need not be there."""
    there = place.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    found = os.statvfs(there)
    return (found.f_bfree if os.geteuid() == 0 else found.f_bavail) * found.f_frsize


def _mib(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns an OSError about `path`'s folder, or about no path at all (a full disk), into the user's message."""
    try:
        yield
    except OSError as error:
        names = [name for name in (error.filename, error.filename2) if name is not None]
        parent = str(path.absolute().parent)
        if names and error.errno not in FULL and not any(str(name).startswith(parent) for name in names):
            raise
        raise explain_os_error(error, path) from error


@contextmanager
def _while_it_stands(draft: Path, path: Path) -> Iterator[None]:
    """Tell of a full disk while the drafts that filled it are there still."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise explain_full_disk(error, path) from error
        if isinstance(error, shutil.Error) and isinstance(error.args[0], list):  # of a tree: the first fault's is told
            source, target, text = error.args[0][0]
            code = next((one for one in FULL if os.strerror(one) in str(text)), None)
            if code is not None:
                known = OSError(code, os.strerror(code), str(source), None, str(target))
                raise explain_full_disk(known, path) from error
        raise


@contextmanager
def temporary_folder(prefix: str = "trtship-", *, beside: Path | None = None) -> Iterator[Path]:
    """A new folder among the system's temporary files, or `beside` a path; gone with all in it when the block ends.
    (`tempfile.TemporaryDirectory` leaves its folder behind where Ctrl-C comes while it makes it.)

    The folder is locked while it is in use: those of killed runs, which nobody holds any more, are removed by the next
    run that makes one in the same place. Raises OutputError where the disk is full.
    """
    parent = Path(tempfile.gettempdir()) if beside is None else beside.parent
    _sweep_once(parent, TEMPORARY)
    folder, lock = _locked_folder(lambda: parent / f"{prefix}{secrets.token_hex(8)}")
    try:
        with _while_it_stands(folder, folder):
            yield folder
    finally:
        remove(folder)
        os.close(lock)


def remove(folder: Path) -> None:
    """A folder with all in it, whether it is there or not; to the end, where Ctrl-C comes in between."""
    try:
        shutil.rmtree(folder, ignore_errors=True)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


@contextmanager
def draft_beside(target: Path) -> Iterator[Path]:
    """A new folder beside `target`, `.NAME.xxxxxxxx.partial`, to write in; gone with all in it when the block ends.

    Parents of `target` that are missing are made, and taken away again where nothing came to stand in them. The
    folder is locked while it is in use; those of killed runs, which nobody holds any more, are removed on the way.
    Raises OutputError.
    """
    target = target.absolute()
    missing = [parent for parent in target.parents if not os.path.lexists(parent)]
    with writing(target):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            _sweep(target.parent, re.compile(re.escape(f".{target.name}.") + DRAFT))
            draft, lock = _locked_folder(lambda: target.parent / f".{target.name}.{secrets.token_hex(4)}.partial")
            try:
                with _while_it_stands(draft, target):
                    yield draft
            finally:
                remove(draft)
                os.close(lock)
        finally:
            for parent in missing:
                with suppress(OSError):
                    parent.rmdir()


def _locked_folder(named: Callable[[], Path]) -> tuple[Path, int]:
    """A new folder and the descriptor that holds its lock, until it is closed or the process ends."""
    while True:
        draft = named()
        try:
            draft.mkdir(mode=0o700)
            lock = _locked(draft)
        except FileExistsError:  # another run's
            raise
        except BaseException:
            remove(draft)
            raise
        if lock is not None:
            return draft, lock


def _locked(draft: Path) -> int | None:
    """The descriptor that holds the folder's lock; None where another run swept it before it was locked."""
    try:
        lock = os.open(draft, os.O_RDONLY)
    except FileNotFoundError:
        return None
    with suppress(OSError):  # a file system without locks: then nothing is swept there either
        fcntl.flock(lock, fcntl.LOCK_EX)
    if draft.exists():
        return lock
    os.close(lock)
    return None


def sweep_drafts(folder: Path) -> None:
    """Remove the drafts of killed runs in a folder that is trtship's own, whatever they were for; once a process."""
    _sweep_once(folder, re.compile(r"\..+\." + DRAFT))


_swept: set[Path] = set()


def _sweep_once(parent: Path, names: re.Pattern[str]) -> None:
    """`_sweep`, once for each folder in the life of this process."""
    if parent not in _swept:
        _swept.add(parent)
        _sweep(parent, names)


def _sweep(parent: Path, names: re.Pattern[str]) -> None:
    """Remove this user's folders of such names that no living process has locked."""
    try:
        found = [entry.name for entry in os.scandir(parent) if names.fullmatch(entry.name)]
    except OSError:  # whoever writes there is told
        return
    for name in found:
        with suppress(OSError):
            lock = os.open(parent / name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(lock).st_uid == os.geteuid():
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(parent / name)
            finally:
                os.close(lock)


@contextmanager
def whole_folder(target: Path, *, replace: bool | Callable[[Path], None] = False) -> Iterator[Path]:
    """An empty folder of `target`'s name, in a draft beside it, put in its place when the block ends well.

    Args:
        target: where the folder goes.
        replace: whether a folder that stands at `target` is replaced: the two change places, and the old one is
            removed. A function is called with `target` right before that, while `target` is locked, and raises
            OutputError where it must stay.

    Raises:
        OutputError: the folder cannot be written, or must not be replaced.
    """
    target = target.absolute()
    with draft_beside(target) as draft:
        folder = draft / target.name
        with writing(target):
            folder.mkdir()
        yield folder
        with writing(target):
            if not replace or not os.path.lexists(target):
                os.rename(folder, target)
                return
            with locked(target):
                if callable(replace):
                    replace(target)
                _exchange(folder, target)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which everybody takes who writes in it or replaces it; wait until it is free.

    The lock is on the folder itself: it needs no file, no permission to write, and is shared by all users of the
    machine. If the folder is replaced while the caller waits, the lock of the new one is taken. On a file system
    without locks nothing is locked. Raises OSError where there is no such folder.
    """
    while True:
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(descriptor), os.stat(folder)):
                yield
                return
        finally:
            os.close(descriptor)


def _exchange(one: Path, other: Path) -> None:
    """In one step where the system can; else in two, undone where the second fails."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        renameat2 = None
    here = -100  # AT_FDCWD
    if renameat2 and not renameat2(here, os.fsencode(one), here, os.fsencode(other), RENAME_EXCHANGE):
        return
    aside = one.with_name("aside")
    os.rename(other, aside)
    try:
        os.rename(one, other)
    except BaseException:
        if not other.exists():
            os.rename(aside, other)
        raise


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """A path in a draft beside `target`, where the block writes a file; renamed to `target` when it ends well.

    Raises OutputError.
    """
    with draft_beside(target) as draft:
        yield draft / target.name
        with writing(target):
            os.replace(draft / target.name, target)


def refuse_to_replace(target: Path, *, force: bool) -> None:
    """Raises OutputError when a file stands at `target` and `force` is not given, or a folder in any case; and,
    before any work is done, where `target` could not be written."""
    with writing(target):
        if target.is_dir():
            raise OutputError(f"{target} is a folder", why="a file is to be written there", do="choose another path")
        if os.path.lexists(target) and not force:
            raise OutputError(
                f"{target} exists", why="it is not replaced unasked", do="--force replaces it, or choose another path"
            )
    check_writable(target)


def check_writable(target: Path, *, do: str = ELSEWHERE) -> None:
    """Raises OutputError where nothing could be put at `target`, as far as can be told without trying."""
    with writing(target):
        parent = target.absolute().parent
        while not parent.exists():
            parent = parent.parent
        why = "it is a file" if not parent.is_dir() else "no write permission"
        if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
            raise OutputError(f"cannot write {target}", why=f"{parent}: {why}", do=do)


def cache_root() -> Path:
    """Return `$TRTSHIP_CACHE`, or `trtship` under `$XDG_CACHE_HOME` or `~/.cache`. A user without a home (a container's
    numbered user) has it among the temporary files, in a folder of their own."""
    if own := os.environ.get("TRTSHIP_CACHE"):
        return Path(own)
    if given := os.environ.get("XDG_CACHE_HOME"):
        return Path(given) / "trtship"
    try:
        return Path.home() / ".cache" / "trtship"
    except RuntimeError:  # neither HOME nor an entry in passwd
        return _cache_without_a_home()


def _cache_without_a_home() -> Path:
    """Raises OutputError where somebody else made the folder: what is in the cache is trusted."""
    place = Path(tempfile.gettempdir()) / f"trtship-cache-{os.geteuid()}"
    try:
        with suppress(FileExistsError):
            place.mkdir(mode=0o700)
        found = place.lstat()
    except OSError as error:
        raise _no_cache(place, error.strerror or str(error)) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise _no_cache(place, "others may write there")
    return place


def _no_cache(place: Path, why: str) -> OutputError:
    return OutputError(
        "there is no place for the cache",
        why=f"this user has no home, and {place} cannot be used: {why}",
        do="set TRTSHIP_CACHE to a folder of your own",
    )
