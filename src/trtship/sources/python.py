"""`path/to/file.py:factory`: a callable of the user's that returns a module, with its weights in it.

The module may say more about itself, in optional attributes:

    trtship_inputs       ["image=Bx1x28x28"], as --input takes them; --input comes before it
    trtship_preprocess   a `trtship.preprocess.Preprocess`, or the same as a dict
    trtship_labels       ["zero", "one", ...], one per class

The factory is called with `--model-arg` as keyword arguments, after seeding torch with `--seed`.
"""

from __future__ import annotations

import re
import traceback
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from trtship.errors import SourceError, SpecError, TrtshipError
from trtship.needs import need
from trtship.preprocess import Preprocess
from trtship.progress import SILENT, Progress
from trtship.session.module_copy import copy_module
from trtship.sources.base import Source
from trtship.sources.factory_code import code_beside, facts_about, module_from_file
from trtship.sources.finish import finish
from trtship.sources.inputs import no_inputs, one_line, required_names
from trtship.sources.loaded import LoadedModel
from trtship.sources.options import SourceOptions
from trtship.spec import TensorSpec


class PythonSource(Source):
    kind: ClassVar[str] = "python"
    form: ClassVar[str] = "path/to/file.py:factory"

    def __init__(self, file: Path, factory: str) -> None:
        super().__init__(f"{file}:{factory}")
        self.file, self.factory = file, factory

    @classmethod
    def accepts(cls, text: str) -> bool:
        return ".py:" in text

    @classmethod
    def parse(cls, text: str) -> Source:
        match = re.fullmatch(r"(.+\.py):([^\W\d]\w*)", text)
        if match is None:
            raise SourceError(
                f"{text!r} names no factory", why=f"it takes {cls.form}", do="name a function in the file"
            )
        return cls(Path(match[1]), match[2])

    def check_files(self, options: SourceOptions) -> None:
        if not self.file.is_file():
            raise SourceError(f"there is no file {self.file}", why="no such file", do="check the path")

    def check_weights(self, options: SourceOptions) -> None:
        for flag, given in (("--pretrained", options.pretrained), ("--random-weights", options.random_weights)):
            if given:
                raise SpecError(
                    f"{flag} does not apply to {self.name}",
                    why="a factory brings its own weights",
                    do=f"leave {flag} out, or load weights of yours with --checkpoint",
                )

    def fingerprint(self, options: SourceOptions) -> None:
        """None: a factory may import its neighbours and read any file."""

    def load(self, options: SourceOptions, progress: Progress = SILENT) -> LoadedModel:
        torch = need("torch", purpose=f"loading {self.name}")
        with progress.stage("load", options.source), code_beside(self.file.resolve()) as imported:
            code, module = self._call(torch, options)
            if isinstance(module, torch.export.ExportedProgram):
                module = module.module()
            if not isinstance(module, torch.nn.Module):
                raise SourceError(
                    f"{self.name} returned no model",
                    why=f"it is a {type(module).__name__}, not a torch.nn.Module",
                    do="return the module from the factory",
                )
            inputs = options.inputs or _own_inputs(module)
            if not inputs:
                raise no_inputs(self.name, required_names(module))
            if options.checkpoint:
                module = copy_module(module)  # the factory may return a module that it keeps
            notes = self.load_weights(module, options)
            return finish(
                options.source,
                module,
                inputs,
                progress=progress,
                preprocess=_own(module, "trtship_preprocess", Preprocess),
                labels=_own(module, "trtship_labels", tuple[str, ...]),
                notes=tuple(notes),
                facts=facts_about([code, *imported()], module, self.file.parent),
            )

    def _call(self, torch: Any, options: SourceOptions) -> tuple[Any, Any]:
        """The file as a module, and what its factory returns. Raises SourceError with the line that failed."""
        try:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(options.seed)
                code = module_from_file(self.file.resolve())
                factory = getattr(code, self.factory, None)
                if not callable(factory) or isinstance(factory, torch.nn.Module):
                    raise SourceError(
                        f"{self.file} has no factory {self.factory!r}",
                        why="it is a module, not a function that returns one"
                        if factory
                        else f"it has {_functions(code)}",
                        do=f"write def {self.factory}(): ... that returns the module",
                    )
                return code, factory(**options.model_kwargs())
        except TrtshipError:
            raise
        except (Exception, SystemExit) as error:
            raise SourceError(
                f"{self.name} failed",
                why=f"{one_line(error)} ({self._place(error)})",
                do="mend the file, or --model-arg",
            ) from error

    def _place(self, error: BaseException) -> str:
        """file:line, the last one in the user's folder."""
        if isinstance(error, SyntaxError) and error.filename:
            return f"{error.filename}:{error.lineno}"
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if Path(frame.filename).is_relative_to(self.file.resolve().parent)]
        return f"{own[-1].filename}:{own[-1].lineno}" if own else str(self.file)


def _own_inputs(module: Any) -> tuple[TensorSpec, ...]:
    texts = _own(module, "trtship_inputs", tuple[str, ...]) or ()
    return tuple(TensorSpec.parse(text) for text in texts)


def _own(module: Any, attribute: str, kind: Any) -> Any:
    """The attribute as `kind`, or None. Raises SpecError."""
    value = getattr(module, attribute, None)
    try:
        return value if value is None or isinstance(value, Preprocess) else msgspec.convert(value, type=kind)
    except msgspec.MsgspecError as error:
        raise SpecError(f"{attribute} of the model is not valid", why=str(error), do="mend it in the file") from error


def _functions(code: Any) -> str:
    names = [
        name
        for name, value in vars(code).items()
        if callable(value) and getattr(value, "__module__", "") == code.__name__
    ]
    return f"only {', '.join(names)}" if names else "no functions"
