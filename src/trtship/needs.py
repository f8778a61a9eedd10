"""Import of heavy packages at the moment of use, with a remedy in the message where they are missing."""

from __future__ import annotations

import importlib
from typing import Any

from trtship.errors import DependencyError

EXTRAS = {"tensorrt_rtx": "rtx", "tensorrt": "tensorrt", "cuda": "rtx"}


def need(module: str, *, purpose: str) -> Any:
    """The imported module. Raises DependencyError that names the extra to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        missing = error.name.split(".")[0] if error.name else package
        why = f"{purpose} needs the package {package}, which is not installed" if missing == package else str(error)
        raise DependencyError(
            f"cannot import {module}", why=why, do=f"pip install 'trtship[{EXTRAS.get(package, 'make')}]'"
        ) from error
