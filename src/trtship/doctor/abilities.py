"""What this machine can do with trtship, as far as its packages, driver and GPUs decide."""

from __future__ import annotations

from collections.abc import Iterable

from trtship.doctor.combinations import Rule
from trtship.doctor.packages import FAMILIES
from trtship.doctor.records import Ability, Machine

TO_MAKE = ("torch", "onnx", "onnxscript", "onnx-ir", "onnxsim")


def abilities(machine: Machine, rules: Iterable[Rule]) -> tuple[Ability, ...]:
    """`rules` are the known combinations that hold on this machine."""
    stopped = {name for rule in rules if rule.stops_gpu for name in rule.when.subjects}
    return (
        _needs(machine, "make bundles (deploy, export, simplify)", TO_MAKE, runtime=True),
        _needs(machine, "run bundles on the CPU, through their ONNX graphs", (), runtime=True),
        _build_ahead(machine),
        _build_here(machine, stopped),
        _run_plans(machine, stopped),
    )


def _works(machine: Machine, name: str) -> bool:
    package = machine.packages.get(name)
    return package is not None and not package.error


def _needs(machine: Machine, what: str, names: tuple[str, ...], *, runtime: bool) -> Ability:
    lacking = [name for name in names if not _works(machine, name)]
    if runtime and not any(_works(machine, name) for name in ("onnxruntime", "onnxruntime-gpu")):
        lacking.append("onnxruntime")
    return Ability(what=what, able=not lacking, why=f"needs {', '.join(lacking)}" if lacking else "")


def _build_ahead(machine: Machine) -> Ability:
    return _needs(machine, "build plans for RTX GPUs ahead of time, without one", ("tensorrt-rtx",), runtime=False)


def _build_here(machine: Machine, stopped: set[str]) -> Ability:
    return _on_gpu(machine, "build plans for this machine's GPU", stopped, ())


def _run_plans(machine: Machine, stopped: set[str]) -> Ability:
    return _on_gpu(machine, "run plans on this machine's GPU", stopped, ("cuda-bindings",))


def _on_gpu(machine: Machine, what: str, stopped: set[str], also: tuple[str, ...]) -> Ability:
    families = [name for name in FAMILIES if _works(machine, name)]
    usable = [name for name in families if name not in stopped]
    lacking = [name for name in also if not _works(machine, name)]
    if not machine.gpus:
        return Ability(what=what, able=False, why="no NVIDIA GPU can be used")
    if not families:
        return Ability(what=what, able=False, why=f"needs {' or '.join(FAMILIES)}")
    if not usable:
        return Ability(what=what, able=False, why=f"{', '.join(families)} does not fit this GPU or driver")
    if lacking:
        return Ability(what=what, able=False, why=f"needs {', '.join(lacking)}")
    return Ability(what=what, able=True, why=f"with {usable[0]}")
