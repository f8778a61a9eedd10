"""Whether installed packages fit each other by their own account: their Requires-Dist against what is installed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from trtship.doctor.combinations import within
from trtship.doctor.records import Finding, Machine

OWNERS = (
    "trtship",
    "torch",
    "torchvision",
    "timm",
    "transformers",
    "onnx",
    "onnx-ir",
    "onnxscript",
    "onnxsim",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
    "tensorrt-rtx",
    "tensorrt-rtx-cu12",
    "tensorrt-rtx-cu13",
    "torch-tensorrt",
    "torch-tensorrt-rtx",
    "cuda-bindings",
)
# What trtship's extras ask for binds where it is installed; whether it must be is another check's question.
EXTRAS = ("make", "rtx", "tensorrt")


def check_requirements(machine: Machine) -> list[Finding]:
    """One finding for each package that is missing, or in a version that another one does not accept.

    The mend satisfies everybody who asks for that package, as far as that can be.
    """
    asked: dict[str, list[tuple[str, Requirement]]] = defaultdict(list)
    for owner in OWNERS:
        for requirement in _binding(owner, machine):
            asked[canonicalize_name(requirement.name)].append((owner, requirement))
    return [found for name, requests in sorted(asked.items()) if (found := _judge(name, requests, machine))]


def _binding(owner: str, machine: Machine) -> Iterator[Requirement]:
    package = machine.packages.get(owner)
    for text in package.requires if package else ():
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        marker = requirement.marker
        there = canonicalize_name(requirement.name) in machine.packages
        extras = EXTRAS if owner == "trtship" and there else ()
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield requirement


def _judge(name: str, requests: list[tuple[str, Requirement]], machine: Machine) -> Finding | None:
    package = machine.packages.get(name)
    unhappy = [
        f"{owner} {machine.packages[owner].version} needs {name}{requirement.specifier}"
        for owner, requirement in requests
        if package is None or not within(package.version, str(requirement.specifier))
    ]
    if not unhappy:
        return None
    everything = SpecifierSet()
    for _, requirement in requests:
        everything &= requirement.specifier
    return Finding(
        topic="fit",
        subject=name,
        state="wrong" if package else "missing",
        found=package.version if package else "not installed",
        why="; ".join(dict.fromkeys(unhappy)),
        mend=f"{machine.pip} install '{name}{everything}'",
    )
