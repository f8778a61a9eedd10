"""A bundle that failed its gates: what is told of it, and where it goes for who wants to look into it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from trtship.bundle.bundle import Bundle
from trtship.bundle.manifest import Manifest
from trtship.deployment.finish import finish
from trtship.deployment.options import DeployOptions
from trtship.deployment.place import check_place
from trtship.deployment.stages import Stages
from trtship.errors import GateError, OutputError, SpecError
from trtship.files import whole_folder
from trtship.spec import as_plain
from trtship.verify import Verdict

OPTION = "--keep-failed"


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

    def told(self, kept: Path | None) -> GateError:
        """What the user is told: where the bundle is kept, or how it could be."""
        found = "finds the tensor that is wrong"
        how = f"{OPTION} FOLDER keeps the bundle, in which trtship debug {found}"
        where = f"trtship debug {kept} {found}: the bundle is kept there"
        return GateError(
            self.what, why=self.why, do=f"{self.do}; {how if kept is None else where}", evidence=self.evidence
        )


class FailedPlace(NamedTuple):
    """Where a bundle that fails goes."""

    folder: Path

    @classmethod
    def checked(cls, folder: str | Path, output: Path, options: DeployOptions, *, force: bool) -> FailedPlace:
        """Raises SpecError, OutputError early where it cannot go there."""
        folder = Path(folder)
        if options.precision is None:
            raise SpecError(
                f"{OPTION} and --precision auto do not go together",
                why="auto tries many, and ships one that passes",
                do="name the precision that you want to look into",
            )
        one, other = folder.resolve(), output.resolve()
        if one.is_relative_to(other) or other.is_relative_to(one):
            raise SpecError(
                f"{OPTION} and -o name folders of which one is in the other",
                why=f"they are {folder} and {output}",
                do="name another",
            )
        check_place(folder)
        if folder.exists() and any(folder.iterdir()) and not force:
            raise OutputError(f"{folder} exists", do=f"--force replaces it, or choose another {OPTION}")
        return cls(folder)

    def keep(self, stages: Stages, draft: Path, manifest: Manifest, verdicts: tuple[Verdict, ...]) -> Path:
        """Put the bundle there with its verdicts and its report. Raises OutputError."""
        with whole_folder(self.folder, replace=self.folder.exists()) as whole:
            shutil.copytree(draft, whole, dirs_exist_ok=True)
            finish(stages, Bundle(whole, msgspec.structs.replace(manifest, verdicts=verdicts)))
        return self.folder
