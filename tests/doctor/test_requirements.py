from __future__ import annotations

from doctor_machines import WORKSTATION, with_packages

from trtship.doctor.records import Package
from trtship.doctor.requirements import check_requirements


def test_a_torchvision_that_pins_another_torch_is_found_and_mended_by_that_torch() -> None:
    machine = with_packages(torchvision=Package(version="0.28.0", requires=("numpy", "torch (==2.13.0)")))
    findings = {f.subject: f for f in check_requirements(machine)}
    assert findings["torch"].state == "wrong"
    assert findings["torch"].found == "2.14.1"
    assert findings["torch"].why == "torchvision 0.28.0 needs torch==2.13.0"
    assert findings["torch"].mend == "pip install 'torch==2.13.0'"


def test_the_mend_satisfies_everybody_who_asks_for_the_package() -> None:
    machine = with_packages(
        torchvision=Package(version="0.29.1", requires=("torch>=2.14.0",)),
        torch_tensorrt_rtx=Package(version="2.15.0", requires=("torch<2.16.0,>=2.15.0",)),
    )
    (found,) = check_requirements(machine)
    assert set(found.mend.removeprefix("pip install 'torch").removesuffix("'").split(",")) == {
        ">=2.14.0",
        "<2.16.0",
        ">=2.15.0",
    }


def test_torch_tensorrt_rtx_names_the_tensorrt_rtx_that_it_needs() -> None:
    machine = with_packages(
        tensorrt_rtx=Package(version="1.7.1.116"),
        torch_tensorrt_rtx=Package(version="2.14.0", requires=("tensorrt_rtx<1.7.0.0,>=1.6.1.120",)),
    )
    (found,) = check_requirements(machine)
    assert (found.subject, found.state) == ("tensorrt-rtx", "wrong")


def test_a_requirement_that_is_not_installed_is_missing() -> None:
    machine = with_packages(onnx=Package(version="1.23.2", requires=("protobuf>=6.31.1",)))
    (found,) = check_requirements(machine)
    assert (found.subject, found.state, found.found) == ("protobuf", "missing", "not installed")
    assert found.mend == "pip install 'protobuf>=6.31.1'"


def test_requirements_for_other_systems_pythons_and_extras_do_not_count() -> None:
    requires = ('pywin32; sys_platform == "win32"', 'tomli; python_version < "3.11"', 'scipy; extra == "all"')
    assert check_requirements(with_packages(onnx=Package(version="1.23.2", requires=requires))) == []


def test_trtships_extras_bind_what_is_installed_and_ask_for_nothing_that_is_not() -> None:
    requires = ('timm>=2; extra == "make"', 'mlxtend>=9; extra == "make"')
    (found,) = check_requirements(with_packages(trtship=Package(version="0.1.0", requires=requires)))
    assert (found.subject, found.state, found.mend) == ("timm", "wrong", "pip install 'timm>=2'")


def test_malformed_metadata_is_passed_over() -> None:
    assert check_requirements(with_packages(onnx=Package(version="1", requires=("this is no requirement",)))) == []


def test_packages_that_agree_are_not_mentioned() -> None:
    assert check_requirements(WORKSTATION) == []
