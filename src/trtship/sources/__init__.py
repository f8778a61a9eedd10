"""Where a model comes from: timm, torchvision, transformers, a Python file, an ONNX file.

`resolve` finds the kinds by looking at this package's files: a new kind is a new file with a subclass of `Source`.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil

from trtship.errors import SourceError
from trtship.sources.base import Source
from trtship.sources.loaded import LoadedGraph, LoadedModel
from trtship.sources.options import SourceOptions, parse_model_arg

__all__ = ["LoadedGraph", "LoadedModel", "Source", "SourceOptions", "parse_model_arg", "resolve"]


def resolve(text: str) -> Source:
    """The source that `text` names, by its form alone. Raises SourceError. Imports nothing heavy."""
    kinds = _kinds()
    if not isinstance(text, str):
        raise SourceError(
            f"a {type(text).__name__} is no source",
            why="a source is text, so that a bundle can say what it was made of",
            do="write a function that returns the model into a file, and name it: path/to/file.py:factory",
        )
    for kind in kinds:
        if kind.accepts(text):
            return kind.parse(text)
    forms = ", ".join(kind.form for kind in kinds)
    hint = f"{text}:factory" if text.endswith(".py") else f"timm/{text}" if text and "/" not in text else ""
    raise SourceError(
        f"{text!r} names no source", why=f"a source is one of {forms}", do=f"for example {hint}" if hint else ""
    )


def _kinds() -> list[type[Source]]:
    modules = [importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)]
    return [
        kind
        for module in modules
        for kind in vars(module).values()
        if isinstance(kind, type)
        and issubclass(kind, Source)
        and not inspect.isabstract(kind)
        and kind.__module__ == module.__name__
    ]
