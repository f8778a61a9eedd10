"""The driver, the GPUs, CUDA and cuDNN, and the machine they sit in."""

from __future__ import annotations

from trtship.doctor.records import Finding, Machine, State

# NVIDIA's network repositories: https://docs.nvidia.com/datacenter/tesla/driver-installation-guide/
REPOSITORIES = {
    "debian12": ("x86_64",),
    "ubuntu2204": ("x86_64", "aarch64"),
    "ubuntu2404": ("x86_64", "aarch64"),
}
# Deploying Swin-T peaks below 6 GiB; its bundle, plan and cache take some hundred MiB.
ENOUGH_MEMORY_MIB = 6 * 1024
ENOUGH_DISK_MIB = 2 * 1024


def driver_command(machine: Machine) -> str:
    """What installs NVIDIA's driver here, its open kernel modules (Turing and newer); empty where that is unknown."""
    if machine.container or machine.architecture not in REPOSITORIES.get(machine.system, ()):
        return ""
    architecture = {"aarch64": "sbsa"}.get(machine.architecture, machine.architecture)
    keyring = "cuda-keyring_1.1-1_all.deb"
    url = f"https://developer.download.nvidia.com/compute/cuda/repos/{machine.system}/{architecture}/{keyring}"
    return f"wget {url} && sudo dpkg -i {keyring} && sudo apt-get update && sudo apt-get install -y nvidia-open"


def check_hardware(machine: Machine) -> list[Finding]:
    """Python, memory, disk, driver, GPUs, CUDA and cuDNN, a line each."""
    python = Finding(topic="machine", subject="Python", state="ok", found=machine.python)
    return [python, *_room(machine), _driver(machine), *_gpus(machine), _cuda(machine), _cudnn(machine)]


def _driver(machine: Machine) -> Finding:
    if machine.driver is not None:
        found = f"{machine.driver.version}, runs CUDA up to {machine.driver.cuda}"
        return Finding(topic="driver", subject="NVIDIA driver", state="ok", found=found)
    found, why, mend = _why_no_driver(machine)
    state: State = "wrong" if machine.kernel_driver else "missing"
    return Finding(topic="driver", subject="NVIDIA driver", state=state, found=found, why=why, mend=mend)


def _why_no_driver(machine: Machine) -> tuple[str, str, str]:
    """Found, why and mend, for a machine whose driver does not answer."""
    need = "running plans needs it; making bundles, and running their ONNX graphs on the CPU, does not"
    if machine.kernel_driver and "version mismatch" in machine.driver_problem.lower():
        why = "the driver was updated while the old one runs: a restart loads the new one"
        return machine.driver_problem, why, "sudo reboot"
    if machine.kernel_driver and machine.container:
        why = f"{machine.driver_problem}: the host has a driver, and this container was started without it"
        return "not in this container", why, "docker run --gpus all -e NVIDIA_DRIVER_CAPABILITIES=compute,utility ..."
    if machine.kernel_driver:
        return "loaded, but it does not answer", machine.driver_problem, driver_command(machine)
    if machine.wsl:
        why = f"{need}. Under WSL the driver is Windows' own: install it there, from https://www.nvidia.com/drivers"
        return "not installed", why, ""
    if machine.card == "absent":
        return "none, and no NVIDIA GPU to drive", f"{need}. No command brings a GPU", ""
    if machine.card == "present":
        command = driver_command(machine)
        where = "" if command else ". See https://docs.nvidia.com/datacenter/tesla/driver-installation-guide/"
        return "not loaded, though there is an NVIDIA GPU", f"{need}{where}", command
    return "not found", need, driver_command(machine)


def _gpus(machine: Machine) -> list[Finding]:
    if machine.gpus:
        return [
            Finding(
                topic="GPU",
                subject=f"GPU {gpu.index}",
                state="ok",
                found=f"{gpu.name}, compute capability {gpu.compute_capability}, {gpu.memory_mib} MiB",
            )
            for gpu in machine.gpus
        ]
    if machine.driver is not None and machine.visible_devices is not None:
        found = f"hidden by CUDA_VISIBLE_DEVICES={machine.visible_devices!r}"
        why = "running plans needs one"
        return [
            Finding(
                topic="GPU", subject="GPU", state="missing", found=found, why=why, mend="unset CUDA_VISIBLE_DEVICES"
            )
        ]
    why = "the driver lists none" if machine.driver else "without a driver, none can be used"
    return [Finding(topic="GPU", subject="GPU", state="missing", found="none", why=why)]


def _cuda(machine: Machine) -> Finding:
    """What needs which CUDA. Whether the driver runs it is a known combination, checked there."""
    packages = machine.packages
    built = [
        f"{name} built for {'no CUDA' if packages[name].cuda == 'none' else packages[name].cuda}"
        for name in ("torch", "tensorrt", "tensorrt-rtx")
        if name in packages and packages[name].cuda
    ]
    runtimes = [f"{name} {packages[name].version}" for name in sorted(packages) if "nvidia-cuda-runtime" in name]
    found = ", ".join([*built, *runtimes]) or "no package here was built for it"
    if machine.driver is None:
        return Finding(topic="CUDA", subject="CUDA", state="note", found=found, why="there is no driver to run it")
    return Finding(topic="CUDA", subject="CUDA", state="ok", found=f"driver runs {machine.driver.cuda}, {found}")


def _cudnn(machine: Machine) -> Finding:
    wheels = [n for n in sorted(machine.packages) if n.startswith("nvidia-cudnn-cu")]
    found = [f"{name} {machine.packages[name].version}" for name in wheels]
    if machine.system_cudnn:
        found.append(f"the system's {machine.system_cudnn}")
    if found:
        return Finding(topic="cuDNN", subject="cuDNN", state="ok", found=", ".join(found))
    if "onnxruntime-gpu" in machine.packages and "torch" not in machine.packages:
        mend = f"{machine.pip} install 'onnxruntime-gpu[cuda,cudnn]'"
        why = "onnxruntime-gpu needs it to run on the GPU"
        return Finding(topic="cuDNN", subject="cuDNN", state="missing", found="not installed", why=why, mend=mend)
    why = "PyTorch brings its own where it needs it; TensorRT runs without"
    return Finding(topic="cuDNN", subject="cuDNN", state="note", found="not installed", why=why)


def _room(machine: Machine) -> list[Finding]:
    memory, disk = machine.memory_mib, machine.disk_free_mib
    tight_memory, tight_disk = memory < ENOUGH_MEMORY_MIB, disk < ENOUGH_DISK_MIB
    return [
        Finding(
            topic="machine",
            subject="memory",
            state="note" if tight_memory else "ok",
            found=f"{memory / 1024:.1f} GiB",
            why="deploying a model of Swin-T's size takes up to 6 GiB" if tight_memory else "",
        ),
        Finding(
            topic="machine",
            subject="disk",
            state="note" if tight_disk else "ok",
            found=f"{disk / 1024:.1f} GiB free at {machine.disk_path}",
            why="plans, graphs and caches of a few models take 2 GiB" if tight_disk else "",
        ),
    ]
