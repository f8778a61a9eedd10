"""What the doctor sees (`Machine`) and what it says (`Diagnosis`)."""

from __future__ import annotations

from typing import Literal

from trtship.gpu import Driver, Gpu
from trtship.spec import Record

State = Literal["ok", "missing", "wrong", "note"]


class Finding(Record, frozen=True):
    """One line: what was `found`, `why` it matters, and the command to `mend` it (empty where no command can).

    A "note" is worth knowing and breaks nothing.
    """

    topic: str
    subject: str
    state: State
    found: str
    why: str = ""
    mend: str = ""


class Ability(Record, frozen=True):
    """Something that trtship does, whether this machine can, and what stands in the way."""

    what: str
    able: bool
    why: str = ""


class Diagnosis(Record, frozen=True):
    """`ok` when no finding is missing or wrong."""

    ok: bool
    findings: tuple[Finding, ...]
    abilities: tuple[Ability, ...]


class Package(Record, frozen=True):
    """An installed distribution. `requires` holds its Requires-Dist; `error` is why importing it fails.

    `cuda` is the CUDA version it was built for, "none" for a build without CUDA, empty where it does not tell.
    """

    version: str
    cuda: str = ""
    requires: tuple[str, ...] = ()
    error: str = ""


class Machine(Record, frozen=True):
    """Everything that the checks look at, so that they are functions of data.

    `packages` maps canonical distribution names; `pip` is the command that installs into this Python; `system` is a
    distribution as NVIDIA's repositories name it, such as "ubuntu2404"; sizes are in MiB. `card` tells whether the PCI
    bus has an NVIDIA display device, and `kernel_driver` whether the running kernel has NVIDIA's module loaded.
    """

    python: str
    pip: str
    packages: dict[str, Package]
    system: str = ""
    architecture: str = "x86_64"
    gpus: tuple[Gpu, ...] = ()
    driver: Driver | None = None
    driver_problem: str = ""
    card: Literal["present", "absent", "unknown"] = "unknown"
    kernel_driver: bool = False
    container: bool = False
    wsl: bool = False
    visible_devices: str | None = None
    system_cudnn: str = ""
    providers: tuple[str, ...] = ()
    torch_gpu_error: str = ""
    memory_mib: int = 0
    disk_free_mib: int = 0
    disk_path: str = ""
