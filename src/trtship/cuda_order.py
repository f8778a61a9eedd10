"""Which GPU CUDA means by a number: the PCI bus ids of its devices, in CUDA's order.

CUDA counts from the GPU that it takes for the fastest (CUDA_DEVICE_ORDER=FASTEST_FIRST, its default), and reads the
numbers in CUDA_VISIBLE_DEVICES so too; only CUDA itself knows that order. It is asked through the driver's library, so
that nothing needs to be installed: here, where it has been started already, else in a process of its own, since no fork
could use CUDA after it was started here. For that process this file is a script of the standard library.
https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__DEVICE.html
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
from functools import cache

LIBRARY = "libcuda.so.1"
SECONDS = 60.0
"""How long a process of its own may take: CUDA's start takes a second or two on hosts of many GPUs."""
_TEXT_BYTES = 32  # "0000:3b:00.0", with room for longer domains
_asking = threading.Lock()


def _forget() -> None:
    """Whoever asked while the process forked is not in the child."""
    global _asking
    _asking = threading.Lock()


os.register_at_fork(after_in_child=_forget)


def started_order() -> tuple[str, ...] | None:
    """The bus ids where CUDA has been started in this process; None where it has not, or does not answer."""
    try:
        cuda = ctypes.CDLL(LIBRARY, mode=os.RTLD_NOLOAD)  # what nobody has loaded nobody has started
    except OSError:
        return None
    return _bus_ids(cuda)


def asked_order() -> tuple[str, ...] | None:
    """The bus ids, from a process that starts CUDA in our environment; None where that fails. It is asked once."""
    with _asking:
        return _asked(os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ.get("CUDA_DEVICE_ORDER"))


@cache
def _asked(visible: str | None, order: str | None) -> tuple[str, ...] | None:
    if not sys.executable:
        return None
    command = [sys.executable, "-I", "-S", __file__]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return tuple(done.stdout.split()) if done.returncode == 0 else None


def _bus_ids(cuda: ctypes.CDLL) -> tuple[str, ...] | None:
    """None where CUDA refuses, as it does before it was started (CUDA_ERROR_NOT_INITIALIZED), and after a fork."""
    try:
        count, device, text = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(_TEXT_BYTES)
        if cuda.cuDeviceGetCount(ctypes.byref(count)):
            return None
        found = []
        for number in range(count.value):
            if cuda.cuDeviceGet(ctypes.byref(device), number):
                return None
            if cuda.cuDeviceGetPCIBusId(text, _TEXT_BYTES, device):
                return None
            found.append(text.value.decode())
    except AttributeError:  # a library without these functions
        return None
    return tuple(found)


def _main() -> int:
    try:
        cuda = ctypes.CDLL(LIBRARY)
        found = None if cuda.cuInit(0) else _bus_ids(cuda)
    except (OSError, AttributeError):
        found = None
    if found is None:
        return 1
    print(*found, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(_main())
