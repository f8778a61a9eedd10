"""A bundle on disk: opened with every hash checked."""

from __future__ import annotations

import hashlib
import os
import reprlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import IO, Any, TypeAlias

import msgspec

from trtship.bundle.limits import MAX_MANIFEST_BYTES, check_manifest_size, max_bytes_of
from trtship.bundle.manifest import Manifest, read_manifest, seal
from trtship.bundle.names import MANIFEST, REPORT, SIGNATURE
from trtship.bundle.reference_files import check_npy, check_reference
from trtship.bundle.stage_reports import read_report
from trtship.errors import BundleCorruptError, BundleError, OutputError, SpecError
from trtship.files import (
    NotRegularError,
    copy_hashed,
    locked,
    named_path,
    open_regular,
    read_bounded,
    sha256_of,
    whole_file,
)
from trtship.progress import SILENT, Progress
from trtship.verify import Reference, Verdict

EVIDENCE = "evidence"
"""The folder of what is told of the bundle; recordings go there."""
Verdicts: TypeAlias = tuple[Verdict, ...]
HASHING = 4
"""Threads; hashlib lets others run meanwhile."""


def folder_of(bundle: object) -> Path:
    """A bundle's path as such. Raises SpecError for what is none."""
    if not isinstance(bundle, (str, os.PathLike)):
        raise SpecError(
            f"{reprlib.repr(bundle)} names no bundle",
            why=f"it is a {type(bundle).__name__}",
            do="pass the path of its folder",
        )
    return named_path(bundle, "the bundle")


class Bundle(msgspec.Struct, frozen=True):
    """An opened bundle: its folder and its manifest. Every file's hash was right when it was opened."""

    folder: Path
    manifest: Manifest

    @staticmethod
    def open(folder: Path | str, *, progress: Progress = SILENT) -> Bundle:
        """Read the manifest and check the SHA-256 of every file it lists.

        Raises BundleError (no bundle), BundleCorruptError (a file is missing or differs), BundleSchemaError, SpecError
        for what is no path.
        """
        folder = folder_of(folder)
        if not folder.is_dir():
            why = "it is a file" if folder.exists() else "there is no such folder"
            raise BundleError(f"{folder} is no bundle", why=why, do="trtship deploy makes one")
        data = manifest_bytes(folder)
        bundle = Bundle(folder, read_manifest(data, where=str(folder / MANIFEST)))
        try:
            with progress.stage("check hashes", folder.name), ThreadPoolExecutor(HASHING) as threads:
                jobs = [threads.submit(bundle._check, n) for n in bundle.manifest.files]
                for job in jobs:
                    job.result()
        except BundleCorruptError:
            if manifest_bytes(folder) == data:
                raise
            return Bundle.open(folder, progress=progress)  # a `with_files` elsewhere came in between
        return bundle

    def path(self, name: str) -> Path:
        """Return where a listed file is: to show it, not to open it, since it may be another file by then.

        Raises BundleCorruptError for a name that leaves the folder, or is not listed.
        """
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or name not in self.manifest.files:
            raise BundleCorruptError(
                f"{self.folder} names a file that is not its own: {name!r}",
                why="its manifest does not list it as a path within the bundle",
                do="deploy the model again",
            )
        return _own(self.folder, name)

    def read(self, name: str) -> bytes:
        """Return a file's bytes, hashed as they are returned: they are what was shipped.

        Raises BundleCorruptError where they are not, BundleError for a file of more than `max_bytes_of` its name.
        """
        with self._opened(name) as file:
            data = read_bounded(file, max_bytes_of(name, self.manifest))
            self._require(name, hashlib.sha256(data).hexdigest())
        return data

    def copy(self, name: str, target: IO[bytes]) -> None:
        """Write a file's bytes to `target`, hashed on the way. Raises as `read` does; `target` is then of no use."""
        with self._opened(name) as file:
            self._require(name, copy_hashed(file, target))

    def _check(self, name: str) -> None:
        with self._opened(name) as file:
            self._require(name, hashlib.file_digest(file, "sha256").hexdigest())

    @contextmanager
    def _opened(self, name: str) -> Iterator[BufferedReader]:
        path = self.path(name)
        try:
            with open_regular(path) as file:
                size, most = os.fstat(file.fileno()).st_size, max_bytes_of(name, self.manifest)
                if size > most:
                    raise BundleError(
                        f"{path} is not read",
                        why=f"it has {size} bytes, and a file of its kind in a bundle has at most {most}",
                        do="copy the bundle again from where it was made, or deploy the model again",
                    )
                yield file
        except FileNotFoundError as error:
            raise self._broken(name, "it is missing") from error
        except NotRegularError as error:
            raise self._broken(name, "it is no plain file") from error
        except OSError as error:
            raise self._broken(name, error.strerror or str(error)) from error

    def _require(self, name: str, digest: str) -> None:
        if digest != self.manifest.files[name]:
            raise self._broken(name, "its SHA-256 is not the manifest's: it was changed or damaged")

    def _broken(self, name: str, why: str) -> BundleCorruptError:
        return BundleCorruptError(
            f"{self.folder / name} cannot be trusted",
            why=why,
            do="copy the bundle again from where it was made, or deploy the model again",
        )

    @property
    def is_signed(self) -> bool:
        """Whether a signature is in it, valid or not."""
        return (self.folder / SIGNATURE).exists()

    @property
    def labels(self) -> tuple[str, ...] | None:
        """One a class, None where the bundle has none. Raises BundleError for a file that is not UTF-8."""
        name = self.manifest.labels
        if name is None:
            return None
        try:
            return tuple(self.read(name).decode().removesuffix("\n").split("\n"))
        except UnicodeDecodeError as error:
            raise BundleError(
                f"{self.folder / name} is not text", why=str(error), do="deploy the model again"
            ) from error

    def evidence(self, stage: str) -> dict[str, Any]:
        """The report of a stage: `export`, `simplify`, `optimize`, `precision`, `build`; empty where there is none.

        Raises BundleCorruptError, and BundleError for what is not such a report (`trtship.bundle.stage_reports`).
        """
        name = f"evidence/{stage}.json"
        if name not in self.manifest.files:
            return {}
        try:
            return read_report(stage, self.read(name))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise BundleError(
                f"{self.folder / name} is not a stage's report", why=str(error), do="deploy the model again"
            ) from error

    def reference(self) -> Reference:
        """The inputs and eager-PyTorch outputs that the bundle carries.

        Raises BundleCorruptError, and BundleError where they are not whole or do not fit the manifest.
        """
        m = self.manifest
        try:
            found = Reference.read(
                self._reference_file,
                inputs=m.inputs,
                outputs=m.outputs,
                sizes=m.reference_sizes,
                has=lambda name: f"reference/{name}" in m.files,
            )
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            raise BundleError(
                f"the reference data of {self.folder} cannot be read", why=str(error), do="deploy the model again"
            ) from error
        check_reference(found, m, where=str(self.folder))
        return found

    def _reference_file(self, name: str) -> bytes:
        data = self.read(f"reference/{name}")
        if name.endswith(".npy"):
            check_npy(data, where=str(self.folder / "reference" / name))
        return data

    def with_verdicts(
        self, verdicts: tuple[Verdict, ...] | Callable[[tuple[Verdict, ...]], tuple[Verdict, ...]]
    ) -> Bundle:
        """Record new verdicts in the manifest on disk, where a report of other ones is listed no longer.

        Args:
            verdicts: all verdicts; or a function from those that are in the manifest now, which others may have
                recorded since this bundle was opened, to all of them.

        Returns:
            The bundle as it is on disk then.

        Raises:
            OutputError: the manifest cannot be written, the bundle is signed, or another bundle stands there by now.
        """
        with _writing(self) as now:
            recorded = verdicts(now.verdicts) if callable(verdicts) else verdicts
            files = {name: digest for name, digest in now.files.items() if name != REPORT}
            manifest = msgspec.structs.replace(now, verdicts=recorded, files=files)
            return Bundle(self.folder, write_manifest(self.folder, manifest))

    def with_files(self, files: Mapping[str, bytes]) -> Bundle:
        """Put files of these names in, or in the place of those that stand there, and list them in the manifest.

        The bundle is whole at every moment: what is to be replaced is first taken out of the list. Returns the bundle
        as it is on disk then, with what others recorded in between.

        Raises OutputError as `with_verdicts` does.
        """
        with _writing(self) as now:
            others = {name: digest for name, digest in now.files.items() if name not in files}
            if len(others) < len(now.files):
                write_manifest(self.folder, msgspec.structs.replace(now, files=others))
            for name, data in files.items():
                with whole_file(_own(self.folder, name)) as draft:
                    draft.write_bytes(data)
            digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
            manifest = msgspec.structs.replace(now, files={**others, **digests})
            return Bundle(self.folder, write_manifest(self.folder, manifest))


@contextmanager
def _writing(bundle: Bundle) -> Iterator[Manifest]:
    """The bundle's manifest as it is on disk now, while nobody else writes to the bundle or replaces it.

    Raises OutputError for a bundle that is signed, or that is another one by now.
    """
    folder = bundle.folder
    try:
        with locked(folder):
            if os.path.lexists(folder / SIGNATURE):
                raise OutputError(
                    f"{folder} is signed",
                    why="what is written to it would make its signature invalid",
                    do=f"write elsewhere (-o), or remove {SIGNATURE} and sign it again afterwards",
                )
            yield _standing(bundle)
    except FileNotFoundError as error:
        raise _replaced(folder, "it was removed meanwhile") from error


def _standing(bundle: Bundle) -> Manifest:
    """The manifest on disk. Raises OutputError where it is not this bundle's with other verdicts or records."""
    try:
        now = read_manifest(manifest_bytes(bundle.folder), where=str(bundle.folder / MANIFEST))
    except BundleError as error:
        raise _replaced(bundle.folder, error.what) from error
    if _identity(now) != _identity(bundle.manifest):
        raise _replaced(bundle.folder, "another bundle was put in its place meanwhile")
    return now


def _identity(manifest: Manifest) -> Manifest:
    """What stays of a manifest whatever is recorded: all but the verdicts and the files that hold evidence."""
    lasting = {
        name: digest
        for name, digest in manifest.files.items()
        if name != REPORT and PurePosixPath(name).parts[0] != EVIDENCE
    }
    return msgspec.structs.replace(manifest, seal="", verdicts=(), files=lasting)


def _replaced(folder: Path, why: str) -> OutputError:
    return OutputError(
        f"nothing was recorded in {folder}", why=why, do="run the command again, on the bundle that is there now"
    )


def manifest_bytes(folder: Path) -> bytes:
    """Read `manifest.json`, unparsed, `MAX_MANIFEST_BYTES` at most.

    Raises BundleError where there is none that can be read, BundleCorruptError for a link out of the folder.
    """
    try:
        with open_regular(_own(folder, MANIFEST)) as file:
            data = read_bounded(file, MAX_MANIFEST_BYTES)
    except (FileNotFoundError, NotADirectoryError, NotRegularError):
        raise BundleError(
            f"{folder} is no bundle", why=f"it has no {MANIFEST}", do="trtship deploy makes one"
        ) from None
    except OSError as error:
        raise BundleError(
            f"{folder} cannot be read",
            why=f"{MANIFEST}: {error.strerror or error}",
            do="mend its permissions, or copy it",
        ) from error
    check_manifest_size(len(data), where=str(folder / MANIFEST))
    return data


def _own(folder: Path, name: str) -> Path:
    """A file of the bundle's. Raises BundleCorruptError for a link that leads out of its folder."""
    path = folder / PurePosixPath(name)
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise BundleCorruptError(
            f"{path} leads out of the bundle",
            why=f"it is a link to {os.path.realpath(path)}, which may change at any time",
            do="put a copy of the file there, or copy the bundle again from where it was made",
        )
    return path


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Seal it and put it in place in one step; return it as it was written."""
    data = seal(manifest)
    with whole_file(folder / MANIFEST) as draft:
        draft.write_bytes(data)
    return msgspec.json.decode(data, type=Manifest)


def hash_files(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below `folder` but the manifest, by its relative path with forward slashes."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    found = {p.relative_to(folder).as_posix(): sha256_of(p) for p in files}
    found.pop(MANIFEST, None)
    return found
