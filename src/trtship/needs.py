"""Import of heavy packages at the moment of use, with a remedy in the message where they are missing."""

from __future__ import annotations

import importlib
import os
import re
from typing import Any

from trtship.errors import DependencyError, MachineError

# extra -> the modules that it brings and that are imported at the moment of use; None: trtship itself
BROUGHT_BY: dict[str | None, tuple[str, ...]] = {
    None: ("numpy", "PIL", "msgspec", "rich", "filelock", "packaging", "jinja2", "markupsafe"),
    "make": (
        "torch", "torchvision", "timm", "transformers", "safetensors", "huggingface_hub",
        "onnx", "onnxscript", "onnx_ir", "onnxsim",
    ),
    "rtx": ("tensorrt_rtx", "cuda", "onnxruntime"),
    "tensorrt": ("tensorrt",),
    "sign": ("model_signing",),
}  # fmt: skip


_LIMITED = re.compile(r"failed to map segment|cannot allocate memory|too many open files", re.IGNORECASE)
"""How the loader says that the process may have no more."""


def keep_quiet() -> None:
    """onnxruntime's builds report their use to their maker from the moment they are imported, by default. A tool that
    somebody runs on a model of theirs asks first: `ORT_DISABLE_TELEMETRY=0` allows it."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def remedy(module: str) -> str:
    """The command that installs what a missing module belongs to."""
    package = module.split(".")[0]
    for extra, modules in BROUGHT_BY.items():
        if package in modules:
            return f"pip install 'trtship[{extra}]'" if extra else "pip install trtship, into this Python"
    return f"pip install {package}, into this Python"


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
        if not absent and _LIMITED.search(str(error)):
            do = "free some memory, or raise the limits of this process (ulimit -a shows them)"
            raise MachineError(f"too little memory, or too few files, to import {module}", why=why, do=do) from error
        raise DependencyError(f"cannot import {module}", why=why, do=remedy(module)) from error
