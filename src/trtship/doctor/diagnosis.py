"""All checks, in the order in which they are told."""

from __future__ import annotations

from trtship.doctor.abilities import abilities
from trtship.doctor.combinations import finding, known_rules, matching
from trtship.doctor.hardware import check_hardware, driver_command
from trtship.doctor.machine import look
from trtship.doctor.packages import check_packages
from trtship.doctor.records import Diagnosis, Finding, Machine
from trtship.doctor.requirements import check_requirements


def diagnose() -> Diagnosis:
    """What this machine has, lacks and can do. Never raises for what it finds; takes some seconds."""
    return judge(look())


def judge(machine: Machine) -> Diagnosis:
    """The diagnosis as a function of what was seen."""
    rules = matching(machine, known_rules())
    command = driver_command(machine)
    fits = {rule.id: finding(rule, machine, command) for rule in rules}
    mends = {name: fits[rule.id].mend for rule in rules for name in rule.when.broken}
    findings = (
        *check_hardware(machine),
        *check_packages(machine, mends),
        *_torch_gpu(machine),
        *fits.values(),
        *check_requirements(machine),
    )
    return Diagnosis(
        ok=not any(f.state in ("missing", "wrong") for f in findings),
        findings=findings,
        abilities=abilities(machine, rules),
    )


def _torch_gpu(machine: Machine) -> list[Finding]:
    """PyTorch's own complaint, where there is a GPU that it was built to use."""
    torch = machine.packages.get("torch")
    if not machine.gpus or torch is None or torch.cuda == "none" or not machine.torch_gpu_error:
        return []
    found = "PyTorch cannot use the GPU"
    return [Finding(topic="fit", subject="torch", state="wrong", found=found, why=machine.torch_gpu_error)]
