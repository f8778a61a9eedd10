from __future__ import annotations

import msgspec
import pytest
from doctor_machines import H100, RTX_4090, WORKSTATION, gpu, with_packages
from msgspec import structs

from trtship.doctor.combinations import Condition, Rule, finding, known_rules, matching, within
from trtship.doctor.records import Machine, Package
from trtship.errors import SpecError
from trtship.gpu import Driver
from trtship.spec import from_json

OLD_DRIVER = Driver(version="570.86.10", cuda="12.8")


def said(machine: Machine) -> dict[str, tuple[str, str]]:
    """Rule -> state and mend."""
    found = [finding(rule, machine, "install-driver") for rule in matching(machine, known_rules())]
    return {f.subject: (f.state, f.mend) for f in found}


def test_a_workstation_whose_parts_fit_hears_nothing() -> None:
    assert said(WORKSTATION) == {}


def test_tensorrt_rtx_1_7_is_wrong_on_an_h100_and_the_mend_is_the_version_that_runs_there() -> None:
    machine = with_packages(structs.replace(WORKSTATION, gpus=(H100,)), tensorrt_rtx=Package(version="1.7.1.116"))
    assert said(machine)["TensorRT-RTX 1.7 on compute capability 9.0"] == (
        "wrong",
        "pip install 'tensorrt-rtx==1.6.1.120'",
    )


@pytest.mark.parametrize(
    ("gpus", "version"), [((H100,), "1.6.1.120"), ((RTX_4090,), "1.7.1.116"), ((), "1.7.1.116")], ids=str
)
def test_tensorrt_rtx_is_not_called_wrong_where_it_works(gpus: tuple, version: str) -> None:
    machine = with_packages(structs.replace(WORKSTATION, gpus=gpus), tensorrt_rtx=Package(version=version))
    assert all(state != "wrong" for state, _ in said(machine).values())


def test_a_data_centre_gpu_is_advised_full_tensorrt_until_it_has_it() -> None:
    machine = structs.replace(WORKSTATION, gpus=(H100,))
    state, mend = said(machine)["TensorRT-RTX on a data-centre GPU"]
    assert state == "note"
    assert mend == "pip install --extra-index-url https://pypi.nvidia.com 'trtship[tensorrt]'"
    assert said(with_packages(machine, tensorrt=Package(version="10.13.0", cuda="13"))) == {}


def test_a_driver_for_cuda_12_is_too_old_for_each_package_built_for_cuda_13() -> None:
    machine = structs.replace(WORKSTATION, driver=OLD_DRIVER)
    assert said(machine) == {
        "PyTorch for CUDA 13": ("wrong", "install-driver"),
        "TensorRT-RTX for CUDA 13": ("wrong", "install-driver"),
    }
    assert said(structs.replace(machine, driver=None)) == {}


def test_packages_built_for_cuda_12_run_on_drivers_for_12_and_13() -> None:
    packages = {"torch": Package(version="2.9.0", cuda="12.8"), "tensorrt_rtx": Package(version="1.4.0", cuda="12")}
    machine = with_packages(WORKSTATION, **packages)
    assert said(machine) == {}
    assert said(structs.replace(machine, driver=OLD_DRIVER)) == {}
    assert "PyTorch for CUDA 12" in said(structs.replace(machine, driver=Driver(version="470.1", cuda="11.4")))


def test_both_onnxruntimes_are_wrong_and_the_mend_keeps_the_installed_version() -> None:
    machine = with_packages(onnxruntime_gpu=Package(version="1.31.0"))
    assert said(machine)["two onnxruntimes"] == (
        "wrong",
        "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'onnxruntime-gpu==1.31.0'",
    )


def test_a_cpu_only_torch_is_wrong_when_it_breaks_torchvision() -> None:
    cpu = Package(version="2.14.1+cpu", cuda="none")
    broken = Package(version="0.29.1", error="RuntimeError: operator torchvision::nms does not exist")
    assert said(with_packages(torch=cpu, torchvision=broken))["torchvision on a CPU-only PyTorch"] == (
        "wrong",
        "pip uninstall -y torch && pip install 'torch==2.14.1'",
    )
    without_gpu = structs.replace(WORKSTATION, gpus=())
    assert said(with_packages(without_gpu, torch=cpu, torchvision=Package(version="0.29.1+cpu"))) == {}


def test_one_gpu_before_turing_is_wrong_alone_and_harmless_beside_a_newer_one() -> None:
    old = gpu("Tesla V100", "7.0")
    assert said(structs.replace(WORKSTATION, gpus=(old,)))["TensorRT-RTX before Turing"] == ("wrong", "")
    assert said(structs.replace(WORKSTATION, gpus=(RTX_4090, old))) == {}


def test_what_was_found_names_versions_gpu_and_driver() -> None:
    machine = with_packages(structs.replace(WORKSTATION, gpus=(H100,)), tensorrt_rtx=Package(version="1.7.1.116"))
    (rule,) = [r for r in matching(machine, known_rules()) if r.state == "wrong"]
    assert finding(rule, machine, "").found == "tensorrt-rtx 1.7.1.116, NVIDIA H100 80GB HBM3 (9.0)"


def test_every_rule_has_its_own_name_a_source_and_a_condition() -> None:
    rules = known_rules()
    assert len({rule.id for rule in rules}) == len(rules)
    assert all(rule.source and rule.why and rule.when != Condition() for rule in rules)


def test_an_unknown_key_in_the_table_is_refused() -> None:
    rule = msgspec.to_builtins(known_rules()[0])
    rule["when"]["package"] = {"torch": ""}
    with pytest.raises(SpecError, match="package"):
        from_json(msgspec.json.encode(rule), Rule, what="the rule")


def test_a_version_that_is_not_pep_440_is_in_no_range() -> None:
    assert within("10.0-custom build", "")
    assert not within("10.0-custom build", ">=1")


def test_prereleases_and_local_versions_count_as_the_versions_they_are() -> None:
    assert within("2.15.0.dev20261101+cu130", ">=2.14")
    assert not within("13.0.0rc1", ">=13.0")
