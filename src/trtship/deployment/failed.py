"""A bundle that failed its gates: what is told of it, and where it goes for who wants to look into it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from shutil import copy2
from typing import NamedTuple

from trtship.bundle.bundle import Bundle
from trtship.bundle.manifest import Manifest
from trtship.bundle.replacing import replaceable_bundle
from trtship.deployment.finish import finish
from trtship.deployment.options import DeployOptions
from trtship.deployment.place import check_place
from trtship.deployment.stages import Stages
from trtship.errors import GateError, OutputError, SpecError
from trtship.files import explain_os_error, whole_folder
from trtship.spec import as_plain
from trtship.verify import Verdict

OPTION = "--keep-failed"
NOT_KEPT = f"{OPTION} FOLDER keeps the bundle, in which trtship debug finds the tensor that is wrong"


class FailedGatesError(GateError):
    """Some of the `verdicts` on a bundle that was about to be shipped are "failed"."""

    def __init__(self, verdicts: Sequence[Verdict], *, do: str) -> None:
        failed = [v for v in verdicts if v.state == "failed"]
        super().__init__(
            f"no bundle: {len(failed)} of {len(verdicts)} gates failed",
            why="; ".join(f"{v.subject}, {v.gate}: {v.reason}" for v in failed),
            do=do,
            evidence=as_plain(tuple(verdicts)),
        )
        self.verdicts = tuple(verdicts)

    def told(self, kept: str) -> GateError:
        """What the user is told; `kept` is what became of the bundle."""
        return GateError(self.what, why=self.why, do=f"{self.do}; {kept}", evidence=self.evidence)


class FailedPlace(NamedTuple):
    """Where a bundle that fails goes; with `force`, in place of one that stands there."""

    folder: Path
    force: bool

    @classmethod
    def checked(cls, folder: str | Path, output: Path, options: DeployOptions, *, force: bool) -> FailedPlace:
        """Raises SpecError, OutputError early where it cannot go there."""
        place = cls(Path(folder), force)
        if options.precision is None:
            raise SpecError(
                f"{OPTION} and --precision auto do not go together",
                why="auto tries many, and ships one that passes",
                do="name the precision that you want to look into",
            )
        one, other = place.folder.resolve(), output.resolve()
        if one.is_relative_to(other) or other.is_relative_to(one):
            raise SpecError(
                f"{OPTION} and -o name folders of which one is in the other",
                why=f"they are {folder} and {output}",
                do="name another",
            )
        place.check()
        return place

    def check(self) -> None:
        """Raises OutputError where nothing may be put there."""
        check_place(self.folder, option=OPTION)
        if self.folder.exists() and any(self.folder.iterdir()) and not self.force:
            raise OutputError(f"{self.folder} exists", do=f"--force replaces it, or choose another {OPTION}")

    def keep(self, stages: Stages, draft: Path, manifest: Manifest, verdicts: tuple[Verdict, ...]) -> str:
        """Put the bundle there with its verdicts and its report, if it can be; what became of it. That a gate failed is
        to be told in any case."""
        try:
            self.check()  # again: minutes have passed
            with whole_folder(self.folder, replace=replaceable_bundle) as whole:
                _copy(draft, whole)
                finish(stages, Bundle(whole, manifest).with_verdicts(verdicts))
        except (OutputError, OSError) as error:
            told = error if isinstance(error, OutputError) else explain_os_error(error, self.folder)
            return f"the bundle could not be kept: {told.what}{f' ({told.why})' if told.why else ''}"
        return f"trtship debug {self.folder} finds the tensor that is wrong: the bundle is kept there"


def _copy(source: Path, target: Path) -> None:
    """All files, up to the first that cannot be. (`shutil.copytree` goes on, and tells of all.)"""
    for path in sorted(source.rglob("*")):
        place = target / path.relative_to(source)
        if path.is_dir():
            place.mkdir()
        else:
            copy2(path, place)
