from __future__ import annotations

import importlib.metadata
import importlib.util
import runpy
from pathlib import Path

import pytest

from trtship.doctor import diagnose
from trtship.doctor.machine import _card, installed


def device(folder: Path, vendor: str, kind: str) -> None:
    folder.mkdir(parents=True)
    (folder / "vendor").write_text(f"{vendor}\n")
    (folder / "class").write_text(f"{kind}\n")


def test_an_nvidia_display_device_on_the_pci_bus_is_a_card(tmp_path: Path) -> None:
    device(tmp_path / "0000:00:02.0", "0x8086", "0x030000")
    device(tmp_path / "0000:01:00.1", "0x10de", "0x040300")
    assert _card(tmp_path) == "absent"
    device(tmp_path / "0000:01:00.0", "0x10de", "0x030200")
    assert _card(tmp_path) == "present"


def test_where_there_is_no_pci_bus_to_look_at_nothing_is_known(tmp_path: Path) -> None:
    assert _card(tmp_path / "none") == "unknown"


def test_installed_packages_have_the_versions_that_their_metadata_say() -> None:
    packages = installed()
    assert packages["msgspec"].version == importlib.metadata.version("msgspec")
    assert packages["pillow"].version == importlib.metadata.version("Pillow")


def test_torchs_cuda_is_read_without_importing_it() -> None:
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        pytest.skip("torch is not installed")
    said = runpy.run_path(str(Path(spec.origin).with_name("version.py")))["cuda"]
    assert installed()["torch"].cuda == (said or "none")


def test_this_machine_gets_a_diagnosis() -> None:
    diagnosis = diagnose()
    found = {f.subject: f for f in diagnosis.findings if f.topic in ("PyTorch", "ONNX", "TensorRT")}
    for name in ("torch", "torchvision", "onnx", "onnxruntime", "tensorrt-rtx"):
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        assert found[name].state == "ok", found[name]
        assert found[name].found.startswith(version)
