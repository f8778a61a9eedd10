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

_HOME = {
    "deploy": "trtship.deploy",
    "DeployResult": "trtship.deploy",
    "load": "trtship.bundle.load",
    "BundleSession": "trtship.bundle.load",
    "verify": "trtship.bundle.verify",
    "Bundle": "trtship.bundle.bundle",
    "TrtshipError": "trtship.errors",
    "Precision": "trtship.spec",
    "ShapeRange": "trtship.spec",
    "TensorSpec": "trtship.spec",
}

__all__ = ["__version__", *_HOME]

if TYPE_CHECKING:
    from trtship.bundle.bundle import Bundle
    from trtship.bundle.load import BundleSession, load
    from trtship.bundle.verify import verify
    from trtship.deploy import DeployResult, deploy
    from trtship.errors import TrtshipError
    from trtship.spec import Precision, ShapeRange, TensorSpec


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'trtship' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
