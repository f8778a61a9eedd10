"""trtship ships PyTorch vision models on NVIDIA TensorRT: one command, one bundle, and the proof inside it.

    import trtship
    trtship.deploy("timm/swin_tiny_patch4_window7_224", "swin.trtship", checkpoint="swin.safetensors")
    with trtship.load("swin.trtship") as session:
        logits = session(["cat.jpg"])

Importing this package loads neither torch nor TensorRT nor onnx: names are looked up when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from trtship.bundle import Bundle, BundleSession, load
    from trtship.deployment import DeployResult, deploy
    from trtship.errors import TrtshipError
    from trtship.report import verify_bundle
    from trtship.spec import Precision, ShapeRange, TensorSpec

__all__ = [
    "Bundle",
    "BundleSession",
    "DeployResult",
    "Precision",
    "ShapeRange",
    "TensorSpec",
    "TrtshipError",
    "__version__",
    "deploy",
    "load",
    "verify_bundle",
]

_HOMES = {
    "trtship.bundle": ("Bundle", "BundleSession", "load"),
    "trtship.deployment": ("DeployResult", "deploy"),
    "trtship.errors": ("TrtshipError",),
    "trtship.report": ("verify_bundle",),
    "trtship.spec": ("Precision", "ShapeRange", "TensorSpec"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'trtship' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
