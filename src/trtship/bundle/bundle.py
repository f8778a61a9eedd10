"""A bundle on disk: opened with every hash checked."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import reprlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import msgspec

from trtship.bundle.manifest import Manifest, read_manifest, seal
from trtship.errors import BundleCorruptError, BundleError, OutputError, SpecError
from trtship.files import named_path, sha256_of, whole_file
from trtship.progress import SILENT, Progress
from trtship.verify import Reference, Verdict

MANIFEST = "manifest.json"
REPORT = "report.html"
SIGNATURE = "model.sig"
"""Over all other files, where there is one (`trtship.bundle.signature`): no file of the manifest's."""
HASHING = 4
"""Threads; hashlib lets others run meanwhile."""
T = TypeVar("T")


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
        try:
            if not (folder / MANIFEST).is_file():
                raise BundleError(f"{folder} is no bundle", why=f"it has no {MANIFEST}", do="trtship deploy makes one")
            data = _own(folder, MANIFEST).read_bytes()
        except OSError as error:
            raise BundleError(
                f"{folder} cannot be read",
                why=f"{MANIFEST}: {error.strerror or error}",
                do="mend its permissions, or copy it",
            ) from error
        bundle = Bundle(folder, read_manifest(data, where=str(folder / MANIFEST)))
        try:
            with progress.stage("check hashes", folder.name), ThreadPoolExecutor(HASHING) as threads:
                jobs = [threads.submit(bundle._check, n, sha256_of, str) for n in bundle.manifest.files]
                for job in jobs:
                    job.result()
        except BundleCorruptError:
            if not (folder / MANIFEST).is_file() or (folder / MANIFEST).read_bytes() == data:
                raise
            return Bundle.open(folder, progress=progress)  # a `with_files` elsewhere came in between
        return bundle

    def path(self, name: str) -> Path:
        """Where a listed file is. Raises BundleCorruptError for a name that leaves the folder, or is not listed."""
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or name not in self.manifest.files:
            raise BundleCorruptError(
                f"{self.folder} names a file that is not its own: {name!r}",
                why="its manifest does not list it as a path within the bundle",
                do="deploy the model again",
            )
        return _own(self.folder, name)

    def read(self, name: str) -> bytes:
        """A file's bytes, hashed again as they are now: what is returned is what was shipped."""
        return self._check(name, lambda path: path.read_bytes(), lambda data: hashlib.sha256(data).hexdigest())

    def _check(self, name: str, read: Callable[[Path], T], digest: Callable[[T], str]) -> T:
        path = self.path(name)
        try:
            if not path.is_file():
                raise self._broken(name, "it is no plain file" if path.exists() else "it is missing")
            found = read(path)
        except OSError as error:
            raise self._broken(name, error.strerror or str(error)) from error
        if digest(found) != self.manifest.files[name]:
            raise self._broken(name, "its SHA-256 is not the manifest's: it was changed or damaged")
        return found

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
        """One a class, None where the bundle has none."""
        name = self.manifest.labels
        return None if name is None else tuple(self.read(name).decode().removesuffix("\n").split("\n"))

    def evidence(self, stage: str) -> dict[str, Any]:
        """The report of a stage: `export`, `simplify`, `optimize`, `precision`, `build`; empty where there is none."""
        name = f"evidence/{stage}.json"
        if name not in self.manifest.files:
            return {}
        found: dict[str, Any] = json.loads(self.read(name))
        return found

    def reference(self) -> Reference:
        """The inputs and eager-PyTorch outputs that the bundle carries."""
        m = self.manifest
        return Reference.read(
            lambda name: self.read(f"reference/{name}"),
            inputs=m.inputs,
            outputs=m.outputs,
            sizes=m.reference_sizes,
            has=lambda name: f"reference/{name}" in m.files,
        )

    def with_verdicts(self, verdicts: tuple[Verdict, ...]) -> Bundle:
        """Record new verdicts in the manifest on disk, where a report of other ones is listed no longer.

        Raises OutputError where it cannot be written, or is signed.
        """
        with _writing(self.folder):
            files = {name: digest for name, digest in self.manifest.files.items() if name != REPORT}
            manifest = msgspec.structs.replace(self.manifest, verdicts=verdicts, files=files)
            write_manifest(self.folder, manifest)
        return Bundle(self.folder, manifest)

    def with_files(self, files: Mapping[str, bytes]) -> Bundle:
        """Put files of these names in, or in the place of those that stand there, and list them in the manifest.

        The bundle is whole at every moment: what is to be replaced is first taken out of the list. Raises OutputError
        where it cannot be written.
        """
        with _writing(self.folder):
            others = {name: digest for name, digest in self.manifest.files.items() if name not in files}
            if len(others) < len(self.manifest.files):
                write_manifest(self.folder, msgspec.structs.replace(self.manifest, files=others))
            for name, data in files.items():
                with whole_file(_own(self.folder, name)) as draft:
                    draft.write_bytes(data)
            digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
            manifest = msgspec.structs.replace(self.manifest, files={**others, **digests})
            write_manifest(self.folder, manifest)
        return Bundle(self.folder, manifest)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """One at a time, where the file system has locks. Raises OutputError for a bundle that is signed."""
    if (folder / SIGNATURE).exists():
        raise OutputError(
            f"{folder} is signed",
            why="what is written to it would make its signature invalid",
            do=f"write elsewhere (-o), or remove {SIGNATURE} and sign it again afterwards",
        )
    lock = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


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


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Seal it and put it in place in one step."""
    with whole_file(folder / MANIFEST) as draft:
        draft.write_bytes(seal(manifest))


def hash_files(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below `folder` but the manifest, by its relative path with forward slashes."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    found = {p.relative_to(folder).as_posix(): sha256_of(p) for p in files}
    found.pop(MANIFEST, None)
    return found
