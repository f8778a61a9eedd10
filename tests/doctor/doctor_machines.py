"""Machines as data, for the checks that are functions of data."""

from __future__ import annotations

from msgspec import structs

from trtship.doctor.records import Machine, Package
from trtship.gpu import Driver, Gpu

DRIVER = Driver(version="580.159.03", cuda="13.0")


def gpu(name: str = "NVIDIA GeForce RTX 4090", capability: str = "8.9") -> Gpu:
    return Gpu(
        index=0, name=name, compute_capability=capability, memory_mib=24564, driver=DRIVER.version, uuid="GPU-0f0f"
    )


H100 = gpu("NVIDIA H100 80GB HBM3", "9.0")
RTX_4090 = gpu()

WORKSTATION = Machine(
    python="3.11.7",
    pip="pip",
    packages={
        "torch": Package(version="2.14.1", cuda="13.0"),
        "torchvision": Package(version="0.29.1"),
        "timm": Package(version="1.0.31"),
        "transformers": Package(version="5.23.0"),
        "safetensors": Package(version="0.8.0"),
        "onnx": Package(version="1.23.2"),
        "onnxscript": Package(version="0.7.2"),
        "onnx-ir": Package(version="1.1.0"),
        "onnxsim": Package(version="0.8.1"),
        "onnxruntime": Package(version="1.32.0"),
        "tensorrt-rtx": Package(version="1.6.1.120", cuda="13"),
        "cuda-bindings": Package(version="13.5.0"),
        "nvidia-cudnn-cu13": Package(version="9.24.0.43"),
    },
    system="ubuntu2404",
    gpus=(RTX_4090,),
    driver=DRIVER,
    card="present",
    kernel_driver=True,
    providers=("CPUExecutionProvider",),
    memory_mib=32768,
    disk_free_mib=100_000,
    disk_path="/home/me/.cache",
)


def with_packages(machine: Machine = WORKSTATION, /, **packages: Package | None) -> Machine:
    """`machine` with these packages (underscores for hyphens) put in, or with None taken out."""
    merged = dict(machine.packages)
    for name, package in packages.items():
        if package is None:
            merged.pop(name.replace("_", "-"), None)
        else:
            merged[name.replace("_", "-")] = package
    return structs.replace(machine, packages=merged)
