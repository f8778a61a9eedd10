"""The GPU that a session is to run on."""

from __future__ import annotations

from trtship.errors import DeviceError
from trtship.gpu import Gpu, list_gpus


def gpu_at(device: int) -> Gpu:
    """The GPU that CUDA counts so. Raises DeviceError where there is none."""
    gpus = list_gpus()
    if not 0 <= device < len(gpus):
        raise DeviceError(
            f"there is no GPU {device} here",
            why=f"{len(gpus)} NVIDIA GPU(s) found, counted from 0",
            do="trtship doctor shows what this machine lacks",
        )
    return gpus[device]
