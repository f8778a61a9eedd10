"""Looks at this machine: Python, packages, driver, GPUs, disk and memory. Nothing here judges."""

from __future__ import annotations

import ctypes.util
import importlib.metadata
import importlib.util
import os
import platform
import re
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from msgspec import structs
from packaging.utils import canonicalize_name

from trtship.doctor.imports import Import, try_imports
from trtship.doctor.records import Machine, Package
from trtship.files import cache_root
from trtship.gpu import driver, driver_problem, list_gpus

# module -> the distributions that may bring it, the usual one first
PROVIDERS = {
    "torch": ("torch",),
    "torchvision": ("torchvision",),
    "onnx": ("onnx",),
    "onnxsim": ("onnxsim",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "tensorrt_rtx": ("tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12"),
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
    "cuda.bindings.runtime": ("cuda-bindings",),
}
FAMILIES = ("tensorrt", "tensorrt-rtx")


def look() -> Machine:
    """Takes some seconds where PyTorch is installed: it is imported, in another process."""
    imports = try_imports()
    disk = _existing(cache_root())
    onnxruntime, torch = imports.get("onnxruntime"), imports.get("torch")
    return Machine(
        python=platform.python_version(),
        pip=_pip(),
        packages=_with_errors(installed(), imports),
        system=_system(),
        architecture=platform.machine(),
        gpus=list_gpus(),
        driver=driver(),
        driver_problem=driver_problem(),
        card=_card(Path("/sys/bus/pci/devices")),
        kernel_driver=Path("/proc/driver/nvidia/version").exists(),
        container=Path("/.dockerenv").exists() or Path("/run/.containerenv").exists(),
        wsl=Path("/dev/dxg").exists(),
        visible_devices=os.environ.get("CUDA_VISIBLE_DEVICES"),
        system_cudnn=ctypes.util.find_library("cudnn") or "",
        providers=onnxruntime.providers if onnxruntime else (),
        torch_gpu_error=torch.gpu_error if torch else "",
        memory_mib=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20,
        disk_free_mib=shutil.disk_usage(disk).free // 2**20,
        disk_path=str(disk),
    )


def installed() -> dict[str, Package]:
    """Every installed distribution by its canonical name; the first on the path wins, as it does for `import`.

    A TensorRT family that was installed by its CUDA-specific name alone is entered under its plain name as well.
    """
    found: dict[str, Package] = {}
    for distribution in importlib.metadata.distributions():
        name = canonicalize_name(str(distribution.metadata["Name"] or ""))
        if name and name not in found:
            found[name] = Package(version=distribution.version, requires=tuple(distribution.requires or ()))
    for family in FAMILIES:
        for cuda in ("12", "13"):
            if built := found.get(f"{family}-cu{cuda}"):
                known = found.get(family, built)
                found[family] = structs.replace(known, cuda=cuda)
    if torch := found.get("torch"):
        found["torch"] = structs.replace(torch, cuda=_torch_cuda())
    return found


def _torch_cuda() -> str:
    """What PyTorch was built for, read from its generated version.py, since importing it takes seconds."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return ""
    try:
        text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    except OSError:
        return ""
    match = re.search(r"^cuda\b[^=]*=\s*(?:'([0-9.]+)'|None)", text, re.MULTILINE)
    return (match[1] or "none") if match else ""


def _with_errors(packages: dict[str, Package], imports: Mapping[str, Import]) -> dict[str, Package]:
    """`packages`, each with why its import failed."""
    merged = dict(packages)
    for module, names in PROVIDERS.items():
        if result := imports.get(module):
            for name in set(names) & set(merged):
                merged[name] = structs.replace(merged[name], error=result.error)
    return merged


def _pip() -> str:
    """The command that installs into the Python that runs this."""
    if importlib.util.find_spec("pip") is None and shutil.which("uv"):
        return f"UV_PYTHON={shlex.quote(sys.executable)} uv pip"
    found = shutil.which("pip")
    if found and Path(found).parent == Path(sys.executable).parent:
        return "pip"
    return f"{shlex.quote(sys.executable)} -m pip"


def _system() -> str:
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        return ""
    return release.get("ID", "") + release.get("VERSION_ID", "").replace(".", "")


def _card(devices: Path) -> Literal["present", "absent", "unknown"]:
    """Looks for PCI vendor 0x10de (NVIDIA) with a display controller's class, 0x03...."""
    if not devices.is_dir():
        return "unknown"
    for device in devices.iterdir():
        try:
            vendor, kind = ((device / name).read_text().strip() for name in ("vendor", "class"))
        except OSError:
            continue
        if vendor == "0x10de" and kind.startswith("0x03"):
            return "present"
    return "absent"


def _existing(path: Path) -> Path:
    """The nearest folder that exists: the cache may not have been made yet."""
    return next(folder for folder in (path, *path.absolute().parents) if folder.exists())
