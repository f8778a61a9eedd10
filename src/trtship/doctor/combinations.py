"""The table of known combinations: data in combinations.json, and the rules for reading it."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Literal

import msgspec
from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from trtship.doctor.records import Finding, Machine
from trtship.spec import Record, from_json


class Condition(Record, frozen=True):
    """Holds when all that is given holds. Ranges are version specifiers, such as ">=1.7,<2"; "" matches everything.

    `packages`: these are installed, in these versions. `absent`: these are not. `broken`: these fail to import.
    `built_for_cuda`: these are installed and built for such a CUDA; "none" is a build without CUDA.
    `driver_cuda`: there is a driver, and the newest CUDA that it runs is such.
    `some_gpu`, `every_gpu`: there are GPUs, and the compute capability of one, of each, is in one of the ranges.
    """

    packages: dict[str, str] = msgspec.field(default_factory=dict)
    absent: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()
    built_for_cuda: dict[str, str] = msgspec.field(default_factory=dict)
    driver_cuda: str | None = None
    some_gpu: tuple[str, ...] = ()
    every_gpu: tuple[str, ...] = ()
    python: str | None = None

    @property
    def subjects(self) -> tuple[str, ...]:
        """The installed packages that the condition is about."""
        return tuple(dict.fromkeys((*self.packages, *self.built_for_cuda, *self.broken)))


class Rule(Record, frozen=True):
    """When `when` holds, that is `state` because of `why`, and `mend` mends it.

    In `mend`, `{pip}` stands for the pip of this Python, `{driver}` for the command that installs NVIDIA's driver,
    and a package's name with underscores, such as `{tensorrt_rtx}`, for its installed version. `stops_gpu`: the
    packages named in `when` cannot run on this machine's GPUs. `source` says where the fact comes from.
    """

    id: str
    topic: str
    when: Condition
    state: Literal["wrong", "note"]
    why: str
    mend: str
    source: str
    stops_gpu: bool = False


@cache
def known_rules() -> tuple[Rule, ...]:
    data = resources.files("trtship.doctor").joinpath("combinations.json").read_bytes()
    return from_json(data, tuple[Rule, ...], what="combinations.json")


def matching(machine: Machine, rules: tuple[Rule, ...]) -> list[Rule]:
    return [rule for rule in rules if holds(rule.when, machine)]


def holds(when: Condition, machine: Machine) -> bool:
    """Whether the condition holds on this machine."""
    packages = machine.packages
    capabilities = [gpu.compute_capability for gpu in machine.gpus]
    return (
        all(name in packages and within(packages[name].version, wanted) for name, wanted in when.packages.items())
        and not any(name in packages for name in when.absent)
        and all(name in packages and packages[name].error for name in when.broken)
        and all(name in packages and _cuda(packages[name].cuda, want) for name, want in when.built_for_cuda.items())
        and (when.driver_cuda is None or (machine.driver is not None and within(machine.driver.cuda, when.driver_cuda)))
        and (not when.some_gpu or any(within_any(c, when.some_gpu) for c in capabilities))
        and (not when.every_gpu or (bool(capabilities) and all(within_any(c, when.every_gpu) for c in capabilities)))
        and (when.python is None or within(machine.python, when.python))
    )


def within(version: str, wanted: str) -> bool:
    """Whether a version is in a range; a version that is not PEP 440 is in none but ""."""
    try:
        return SpecifierSet(wanted).contains(Version(version), prereleases=True)
    except InvalidVersion:
        return wanted == ""


def within_any(version: str, ranges: tuple[str, ...]) -> bool:
    return any(within(version, wanted) for wanted in ranges)


def _cuda(built_for: str, wanted: str) -> bool:
    if "none" in (built_for, wanted):
        return built_for == wanted
    return built_for != "" and within(built_for, wanted)


def finding(rule: Rule, machine: Machine, driver_command: str) -> Finding:
    """What the rule says about this machine."""
    versions = {name.replace("-", "_"): _public(package.version) for name, package in machine.packages.items()}
    return Finding(
        topic=rule.topic,
        subject=rule.id,
        state=rule.state,
        found=_found(rule.when, machine),
        why=rule.why,
        mend=rule.mend.format_map(versions | {"pip": machine.pip, "driver": driver_command}),
    )


def _found(when: Condition, machine: Machine) -> str:
    """The facts that made the condition hold: "tensorrt-rtx 1.7.1.116, compute capability 9.0"."""
    facts = [f"{name} {machine.packages[name].version}" for name in when.subjects]
    if when.some_gpu or when.every_gpu:
        ranges = when.some_gpu or when.every_gpu
        matched = [gpu for gpu in machine.gpus if within_any(gpu.compute_capability, ranges)]
        facts += dict.fromkeys(f"{gpu.name} ({gpu.compute_capability})" for gpu in matched)
    if when.driver_cuda is not None and machine.driver is not None:
        facts.append(f"driver {machine.driver.version}, CUDA {machine.driver.cuda}")
    if when.python is not None:
        facts.append(f"Python {machine.python}")
    return ", ".join(facts)


def _public(version: str) -> str:
    """Without the local part, which package indexes do not have: "2.14.1+cpu" is 2.14.1."""
    return version.split("+")[0]
