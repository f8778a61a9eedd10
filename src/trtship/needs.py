"""Import of heavy packages at the moment of use, with a remedy in the message where they are missing."""

from __future__ import annotations

import importlib
import os
from typing import Any

from trtship.errors import DependencyError

EXTRAS = {"tensorrt_rtx": "rtx", "tensorrt": "tensorrt", "cuda": "rtx", "model_signing": "sign"}


def keep_quiet() -> None:
    """onnxruntime's builds report their use to their maker from the moment they are imported, by default. A tool that
    somebody runs on a model of theirs asks first: `ORT_DISABLE_TELEMETRY=0` allows it."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def need(module: str, *, purpose: str) -> Any:
    """The imported module. Raises DependencyError that names the extra to install."""
    if module == "onnxruntime":
        keep_quiet()
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        absent = (
            isinstance(error, ModuleNotFoundError) and error.name is not None and error.name.split(".")[0] == package
        )
        why = f"{purpose} needs the package {package}, which is not installed" if absent else str(error)
        raise DependencyError(
            f"cannot import {module}", why=why, do=f"pip install 'trtship[{EXTRAS.get(package, 'make')}]'"
        ) from error
