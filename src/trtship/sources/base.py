"""What every kind of source has: a way to check what was asked, to fingerprint it cheaply, and to load it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from trtship.errors import DependencyError, SourceError, SpecError
from trtship.progress import SILENT, Progress
from trtship.sources.checkpoint_files import check_checkpoint_file, checkpoint_digest
from trtship.sources.loaded import LoadedGraph, LoadedModel
from trtship.sources.options import SourceOptions
from trtship.spec import to_json

if TYPE_CHECKING:
    import torch

CHECKPOINT_RULES = "2: averaged weights first"
"""How a state dict is chosen from a file, in every fingerprint: it changes with the weights that are loaded."""


class Source(ABC):
    """One model that the user named. `kind` is the sort of source, `name` the model within it.

    A new kind is a new file in this package with a subclass; `resolve` finds it. Subclasses say in `accepts` which
    texts are theirs (one kind at most may accept a text) and in `form` how these look, for messages.
    """

    kind: ClassVar[str]
    form: ClassVar[str]
    takes_task: ClassVar[bool] = False
    """Whether --task says something about this kind."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._digest: str | None = None

    @classmethod
    @abstractmethod
    def accepts(cls, text: str) -> bool:
        """Whether `text` has this kind's form."""

    @classmethod
    @abstractmethod
    def parse(cls, text: str) -> Source:
        """The source that an accepted `text` names. Touches no file and imports nothing heavy."""

    def check(self, options: SourceOptions) -> None:
        """Stop early and cheaply (no torch) on options that contradict and files that are not there.

        Raises SourceError, CheckpointError or SpecError.
        """
        asked = [
            flag
            for flag, given in (
                ("--checkpoint", options.checkpoint is not None),
                ("--pretrained", options.pretrained),
                ("--random-weights", options.random_weights),
            )
            if given
        ]
        if len(asked) > 1:
            raise SpecError(
                f"{' and '.join(asked)} contradict each other", why="weights have one origin", do="keep one"
            )
        if options.task is not None and not self.takes_task:
            raise SpecError(
                f"--task does not apply to {options.source}",
                why="it says which class of transformers a model is",
                do="leave it out",
            )
        check_unique("--input", [spec.name for spec in options.inputs])
        check_unique("--model-arg", [name for name, _ in options.model_args])
        self.check_files(options)
        self.check_weights(options)
        if options.checkpoint is not None:
            check_checkpoint_file(Path(options.checkpoint))

    def check_files(self, options: SourceOptions) -> None:  # noqa: B027 (most kinds have none)
        """Whether the source itself is there. For kinds that are files."""

    def check_weights(self, options: SourceOptions) -> None:
        """Whether it is said where weights come from."""
        if options.checkpoint is None and not options.pretrained and not options.random_weights:
            raise SourceError(
                f"no weights for {options.source}",
                why="neither --checkpoint nor --pretrained says where they come from",
                do=f"--checkpoint FILE, --pretrained to ask {self.kind}'s own hub, or --random-weights for a trial",
            )

    @abstractmethod
    def fingerprint(self, options: SourceOptions) -> dict[str, str] | None:
        """Everything that determines the loaded model, without importing torch; equal exactly when it is equal.

        None where only loading can tell; use `LoadedModel.fingerprint()` then.
        """

    def library_fingerprint(self, options: SourceOptions, *packages: str) -> dict[str, str]:
        """Return `base_fingerprint`; a checkpoint that is loaded afterwards must be the one that it hashed."""
        self._digest = None if options.checkpoint is None else checkpoint_digest(Path(options.checkpoint))
        return base_fingerprint(options, *packages, digest=self._digest)

    def library_facts(self, options: SourceOptions, *packages: str) -> dict[str, str]:
        """Return `base_fingerprint` with the digest of the checkpoint that `load_weights` loaded."""
        return base_fingerprint(options, *packages, digest=self._digest)

    def load_weights(self, module: torch.nn.Module, options: SourceOptions) -> list[str]:
        """Put the weights of --checkpoint, if any, into the module, and return notes.

        Raises:
            CheckpointError: If they do not fit, or the file is not the one that was fingerprinted.
        """
        from trtship.sources.checkpoint import load_checkpoint

        if options.checkpoint is None:
            return []
        path = Path(options.checkpoint)
        self._digest = self._digest or checkpoint_digest(path)
        return load_checkpoint(module, path, digest=self._digest)

    @abstractmethod
    def load(self, options: SourceOptions, progress: Progress = SILENT) -> LoadedModel | LoadedGraph:
        """The model, on the CPU. Each of its `notes` is told to `progress` as well."""


class PrefixSource(Source):
    """A source written KIND/NAME."""

    def __init_subclass__(cls) -> None:
        cls.form = f"{cls.kind}/NAME"

    @classmethod
    def accepts(cls, text: str) -> bool:
        return text.startswith(f"{cls.kind}/") and not text.endswith(".onnx") and ".py:" not in text

    @classmethod
    def parse(cls, text: str) -> Source:
        name = text.removeprefix(f"{cls.kind}/")
        if not name:
            raise SourceError(
                f"{text!r} names no model", why=f"it takes {cls.form}", do=f"write the name after {cls.kind}/"
            )
        return cls(name)


def check_unique(option: str, names: list[str]) -> None:
    """Raises SpecError naming what was given twice."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise SpecError(f"{option} {twice[0]}=... was given more than once", why="one value per name", do="keep one")


def version_of(package: str) -> str:
    """The installed version, from its metadata alone. Raises DependencyError."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        raise DependencyError(
            f"cannot load this model without the package {package}",
            why="it is not installed",
            do="pip install 'trtship[make]'",
        ) from None


def base_fingerprint(options: SourceOptions, *packages: str, digest: str | None = None) -> dict[str, str]:
    """Return what determines a model built by a library: the options, the checkpoint's bytes, the library's version.

    Args:
        options: What the user said about the model.
        packages: The packages whose versions count.
        digest: The checkpoint's digest where it is known, so that the file is not read again.
    """
    facts = {
        "source": options.source,
        "model_args": to_json(sorted(options.model_args), indent=0).decode().strip(),
        "inputs": "; ".join(str(spec) for spec in options.inputs),
    }
    if options.checkpoint is not None:
        facts["checkpoint"] = digest or checkpoint_digest(Path(options.checkpoint))
        facts["checkpoint rules"] = CHECKPOINT_RULES
    if options.task is not None:
        facts["task"] = options.task
    if options.random_weights:
        facts["seed"] = str(options.seed)
    return facts | {package: version_of(package) for package in packages}
