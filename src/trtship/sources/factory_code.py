"""The user's own code: loaded from a file, and all that it is made of, for fingerprints."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import os
import site
import sys
import sysconfig
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import trtship
from trtship.files import sha256_of

if TYPE_CHECKING:
    import torch

# names of the local modules that earlier factories imported: a later one may have files of the same names
_brought: set[str] = set()


@contextlib.contextmanager
def code_beside(file: Path) -> Iterator[Callable[[], list[types.ModuleType]]]:
    """Lets `file` import its neighbours, freshly read; gives a function that lists the local modules imported so far.

    Prints inside go to stderr, and no `__pycache__` is left.
    """
    for name in _brought:
        sys.modules.pop(name, None)
    _brought.clear()
    importlib.invalidate_caches()
    before, path, writes = set(sys.modules), list(sys.path), sys.dont_write_bytecode
    sys.path.insert(0, str(file.parent))
    sys.dont_write_bytecode = True

    def imported() -> list[types.ModuleType]:
        return [sys.modules[name] for name in set(sys.modules) - before if _local_file(sys.modules[name])]

    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield imported
    finally:
        sys.path[:], sys.dont_write_bytecode = path, writes
        _brought.update(module.__name__ for module in imported())


def module_from_file(file: Path) -> types.ModuleType:
    """The file, run as a module with a name of its own in `sys.modules`, where torch looks code up.

    Raises what the file raises.
    """
    unique = hashlib.sha256(os.fsencode(file)).hexdigest()[:8]
    name = f"trtship_factory_{file.stem}_{unique}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot import {file}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def facts_about(code: Iterable[types.ModuleType], model: torch.nn.Module, folder: Path) -> dict[str, str]:
    """SHA-256 of every local file that `code` and `model` are made of, and the versions of the packages they use."""
    local: dict[Path, types.ModuleType] = {}
    packages = {"torch"}
    todo = list(code)
    todo += [sys.modules[name] for part in model.modules() for name in _homes(type(part)) if name in sys.modules]
    while todo:
        module = todo.pop()
        file = _local_file(module)
        if file is None:
            packages.add(module.__name__.partition(".")[0])
        elif file not in local:
            local[file] = module
            todo += _modules_used_by(module)
    facts = {f"code {_shown(file, folder)}": sha256_of(file) for file in local}
    return facts | _versions(packages)


def _modules_used_by(module: types.ModuleType) -> list[types.ModuleType]:
    names: set[str] = set()
    for value in vars(module).values():
        if isinstance(value, types.ModuleType):
            names.add(value.__name__)
        elif isinstance(value, type):
            names.update(_homes(value))
        else:
            names.add(value.__module__ if isinstance(value, types.FunctionType) else type(value).__module__)
    return [sys.modules[name] for name in names if name in sys.modules]


def _homes(kind: type) -> set[str]:
    return {base.__module__ for base in kind.__mro__}


def _local_file(module: types.ModuleType) -> Path | None:
    """The file of a module that is neither Python's, nor installed, nor trtship's own."""
    name = getattr(module, "__file__", None)
    if not name:
        return None
    file = Path(name).resolve()
    return None if any(file.is_relative_to(root) for root in _installed_roots()) else file


def _installed_roots() -> set[Path]:
    paths = sysconfig.get_paths()
    roots = [paths[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")]
    roots += [*site.getsitepackages(), site.getusersitepackages(), *trtship.__path__]
    return {Path(root).resolve() for root in roots}


def _shown(file: Path, folder: Path) -> str:
    return str(file.relative_to(folder.resolve()) if file.is_relative_to(folder.resolve()) else file)


def _versions(packages: set[str]) -> dict[str, str]:
    distributions = _distributions()
    return {name: metadata.version(name) for package in packages for name in distributions.get(package, [])}


@functools.cache
def _distributions() -> Mapping[str, list[str]]:
    return metadata.packages_distributions()
