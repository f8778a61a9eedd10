"""The NVIDIA driver and its GPUs, asked through NVML: without torch, and without initializing CUDA here.

CUDA that has been initialized does not survive a fork; NVML does no such harm. Nothing here raises: where there is
no driver, or it does not answer, there are no GPUs, and `driver_problem` says why.
NVML's functions and return codes: https://docs.nvidia.com/deploy/nvml-api/
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from trtship.cuda_order import asked_order, started_order
from trtship.spec import Record

LIBRARY = "libnvidia-ml.so.1"
_TEXT_BYTES = 96  # NVML asks for 96 for names, 96 for UUIDs, 80 for the driver's version


class Driver(Record, frozen=True):
    """The driver's version, such as "580.159.03", and the newest CUDA that it runs, such as "13.0"."""

    version: str
    cuda: str


class Gpu(Record, frozen=True):
    """A GPU that CUDA may use here. `memory_mib` is all its memory, in MiB; `compute_capability` is like "9.0".

    `index` counts the visible GPUs as CUDA does, so that it is what `device=` takes.
    """

    index: int
    name: str
    compute_capability: str
    memory_mib: int
    driver: str
    uuid: str


def list_gpus() -> tuple[Gpu, ...]:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves visible, in CUDA's order; empty without a driver.

    Where there are GPUs of several kinds, and CUDA has not been started in this process, the first call starts it in
    another one, which may take a second. Where CUDA does not tell, the order is that of their PCI bus numbers, or of
    CUDA_VISIBLE_DEVICES.
    """
    try:
        with _nvml() as nvml:
            version = _text(nvml, "nvmlSystemGetDriverVersion")
            return tuple(_describe(nvml, handle, i, version) for i, handle in enumerate(_usable(nvml)))
    except _NvmlError:
        return ()


def driver() -> Driver | None:
    """The driver that is loaded; None where there is none, or it does not answer."""
    try:
        return _driver()
    except _NvmlError:
        return None


def driver_problem() -> str:
    """Why the driver does not answer, in NVML's words; empty when it does."""
    try:
        _driver()
    except _NvmlError as error:
        return str(error)
    return ""


def _driver() -> Driver:
    with _nvml() as nvml:
        cuda = ctypes.c_int()
        _call(nvml, "nvmlSystemGetCudaDriverVersion_v2", ctypes.byref(cuda))
        version = _text(nvml, "nvmlSystemGetDriverVersion")
        return Driver(version=version, cuda=f"{cuda.value // 1000}.{cuda.value % 1000 // 10}")


class _NvmlError(Exception):
    pass


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


@contextmanager
def _nvml() -> Iterator[ctypes.CDLL]:
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise _NvmlError(str(error)) from error
    _call(library, "nvmlInit_v2")
    try:
        yield library
    finally:
        library.nvmlShutdown()


def _call(nvml: ctypes.CDLL, name: str, *arguments: object) -> None:
    try:
        function = getattr(nvml, name)
    except AttributeError as error:
        raise _NvmlError(f"{LIBRARY} has no {name}") from error
    code = function(*arguments)
    if code != 0:
        nvml.nvmlErrorString.restype = ctypes.c_char_p
        raise _NvmlError(f"{nvml.nvmlErrorString(code).decode(errors='replace')} ({name} returned {code})")


def _text(nvml: ctypes.CDLL, name: str, *before: object) -> str:
    buffer = ctypes.create_string_buffer(_TEXT_BYTES)
    _call(nvml, name, *before, buffer, ctypes.c_uint(_TEXT_BYTES))
    return buffer.value.decode(errors="replace")


def _usable(nvml: ctypes.CDLL) -> list[ctypes.c_void_p]:
    """Those that CUDA may use, in its order."""
    asked, handles = os.environ.get("CUDA_VISIBLE_DEVICES"), _all(nvml)
    order = started_order()
    if order is None and _is_open(nvml, asked, handles):
        order = asked_order()
    if order is not None:
        known = [_handle(nvml, "nvmlDeviceGetHandleByPciBusId_v2", bus_id.encode()) for bus_id in order]
        found = [handle for handle in known if handle is not None]
        if len(found) == len(order):
            return found
    return _visible(nvml, asked, handles)


def _all(nvml: ctypes.CDLL) -> list[ctypes.c_void_p]:
    """In the order of their PCI bus numbers."""
    count = ctypes.c_uint()
    _call(nvml, "nvmlDeviceGetCount_v2", ctypes.byref(count))
    return [h for i in range(count.value) if (h := _handle(nvml, "nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(i)))]


def _is_open(nvml: ctypes.CDLL, asked: str | None, handles: Sequence[ctypes.c_void_p]) -> bool:
    """Whether CUDA's order may be another than that of the bus, in a way that matters: by speed, of different GPUs."""
    if os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID":
        return False
    if asked is not None and not any(entry.strip().isdecimal() for entry in asked.split(",")):
        return False  # by their UUIDs, or none
    return len({_text(nvml, "nvmlDeviceGetName", handle) for handle in handles}) > 1


def _visible(nvml: ctypes.CDLL, asked: str | None, handles: list[ctypes.c_void_p]) -> list[ctypes.c_void_p]:
    if asked is None:
        return handles
    chosen: list[ctypes.c_void_p] = []
    for entry in asked.split(","):
        handle = _choose(nvml, entry.strip(), handles)
        if handle is None:  # CUDA, too, stops at the first entry that names no GPU
            break
        chosen.append(handle)
    return chosen


def _choose(nvml: ctypes.CDLL, entry: str, handles: Sequence[ctypes.c_void_p]) -> ctypes.c_void_p | None:
    """What one entry of CUDA_VISIBLE_DEVICES names: an index, a UUID or the start of one, or a MIG instance."""
    if entry.startswith("MIG-"):
        instance = _handle(nvml, "nvmlDeviceGetHandleByUUID", entry.encode())
        return instance and _handle(nvml, "nvmlDeviceGetDeviceHandleFromMigDeviceHandle", instance)
    if entry.startswith("GPU-"):
        matching = [h for h in handles if _text(nvml, "nvmlDeviceGetUUID", h).startswith(entry)]
        return matching[0] if len(matching) == 1 else None
    return handles[int(entry)] if entry.isdecimal() and int(entry) < len(handles) else None


def _handle(nvml: ctypes.CDLL, function: str, key: object) -> ctypes.c_void_p | None:
    """None for a GPU that does not answer, so that one lost GPU does not hide the others."""
    handle = ctypes.c_void_p()
    try:
        _call(nvml, function, key, ctypes.byref(handle))
    except _NvmlError:
        return None
    return handle


def _describe(nvml: ctypes.CDLL, handle: ctypes.c_void_p, index: int, version: str) -> Gpu:
    major, minor, memory = ctypes.c_int(), ctypes.c_int(), _Memory()
    _call(nvml, "nvmlDeviceGetCudaComputeCapability", handle, ctypes.byref(major), ctypes.byref(minor))
    _call(nvml, "nvmlDeviceGetMemoryInfo", handle, ctypes.byref(memory))
    return Gpu(
        index=index,
        name=_text(nvml, "nvmlDeviceGetName", handle),
        compute_capability=f"{major.value}.{minor.value}",
        memory_mib=memory.total // 2**20,
        driver=version,
        uuid=_text(nvml, "nvmlDeviceGetUUID", handle),
    )
