"""The packages that trtship's steps need: installed, and importable."""

from __future__ import annotations

from msgspec import structs

from trtship.doctor.records import Finding, Machine, Package

# distribution, what it is needed for
MAKERS = {
    "PyTorch": {
        "torch": "loads and exports models",
        "torchvision": "the source torchvision/NAME, and timm",
        "timm": "the source timm/NAME",
        "transformers": "the source transformers/NAME",
        "safetensors": "reads checkpoints",
    },
    "ONNX": {
        "onnx": "reads and writes graphs",
        "onnxscript": "exports models",
        "onnx-ir": "rewrites graphs",
        "onnxsim": "simplifies graphs",
    },
}
ONNX_RUNTIMES = ("onnxruntime-gpu", "onnxruntime")
FAMILIES = {"tensorrt": "tensorrt", "tensorrt-rtx": "rtx"}  # distribution -> extra
NVIDIA_INDEX = "--extra-index-url https://pypi.nvidia.com"
DATA_CENTRE = ("8.0", "9.0", "10.0", "10.3")  # compute capabilities of A100, H100, B200, B300


def check_packages(machine: Machine, mends: dict[str, str]) -> list[Finding]:
    """`mends` maps packages that fail to import to a known combination's command, better than a new installation."""
    makers = [
        _maker(machine, topic, name, purpose, mends)
        for topic, names in MAKERS.items()
        for name, purpose in names.items()
    ]
    return [*makers, _onnxruntime(machine, mends), *_families(machine, mends), _bindings(machine, mends)]


def only_runs(machine: Machine) -> bool:
    """Whether trtship was installed to run bundles, not to make them: with a runtime, and nothing that makes them."""
    makers = {name for names in MAKERS.values() for name in names}
    return not makers & set(machine.packages) and not {*FAMILIES, *ONNX_RUNTIMES}.isdisjoint(machine.packages)


def wanted_family(machine: Machine) -> str:
    """The TensorRT family to install here: full TensorRT where every GPU is a data-centre one, else TensorRT-RTX."""
    capabilities = {gpu.compute_capability for gpu in machine.gpus}
    return "tensorrt" if capabilities and capabilities <= set(DATA_CENTRE) else "tensorrt-rtx"


def _maker(machine: Machine, topic: str, name: str, purpose: str, mends: dict[str, str]) -> Finding:
    if not only_runs(machine):
        return _package(machine, topic, name, f"{purpose}: needed to make bundles", "make", mends)
    why = f"{purpose}: needed to make bundles, not to run them"
    return structs.replace(_package(machine, topic, name, why, "make", mends), state="note")


def _package(machine: Machine, topic: str, name: str, why: str, extra: str, mends: dict[str, str]) -> Finding:
    package = machine.packages.get(name)
    index = f"{NVIDIA_INDEX} " if extra == "tensorrt" else ""
    if package is None:
        mend = f"{machine.pip} install {index}'trtship[{extra}]'"
        return Finding(topic=topic, subject=name, state="missing", found="not installed", why=why, mend=mend)
    if package.error:
        again = f"{machine.pip} install --force-reinstall {index}'{name}=={package.version.split('+')[0]}'"
        return Finding(
            topic=topic,
            subject=name,
            state="wrong",
            found=f"{package.version}, cannot be imported",
            why=package.error,
            mend=mends.get(name, again),
        )
    return Finding(topic=topic, subject=name, state="ok", found=_found(package))


def _found(package: Package) -> str:
    built = {"": "", "none": ", built without CUDA"}.get(package.cuda, f", built for CUDA {package.cuda}")
    return package.version + built


def _onnxruntime(machine: Machine, mends: dict[str, str]) -> Finding:
    name = next((name for name in ONNX_RUNTIMES if name in machine.packages), ONNX_RUNTIMES[-1])
    needed, extra = ("make bundles", "make")
    if only_runs(machine):
        needed, extra = ("run bundles without a GPU, and to verify them", FAMILIES[_family(machine)])
    finding = _package(machine, "ONNX", name, f"runs and checks graphs: needed to {needed}", extra, mends)
    if finding.state != "ok":
        return finding
    providers = ", ".join(p.removesuffix("ExecutionProvider") for p in machine.providers)
    return Finding(topic="ONNX", subject=name, state="ok", found=f"{finding.found}, providers: {providers}")


def _families(machine: Machine, mends: dict[str, str]) -> list[Finding]:
    """One family is enough. Where there is none, the one that suits the machine is missing, the other is a note."""
    wanted = wanted_family(machine)
    findings = []
    for name, extra in FAMILIES.items():
        finding = _package(machine, "TensorRT", name, "builds and runs plans", extra, mends)
        others = [n for n in FAMILIES if n != name and n in machine.packages]
        if finding.state == "missing" and (others or name != wanted):
            why = f"not needed beside {others[0]}" if others else f"one family is enough; {wanted} suits this machine"
            finding = Finding(topic="TensorRT", subject=name, state="note", found="not installed", why=why)
        findings.append(finding)
    return findings


def _bindings(machine: Machine, mends: dict[str, str]) -> Finding:
    extra = FAMILIES[_family(machine)]
    return _package(machine, "TensorRT", "cuda-bindings", "moves data to and from the GPU", extra, mends)


def _family(machine: Machine) -> str:
    """The one that is installed, else the one to install."""
    return next((name for name in FAMILIES if name in machine.packages), wanted_family(machine))
