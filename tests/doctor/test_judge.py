from __future__ import annotations

from doctor_machines import DRIVER, H100, RTX_4090, WORKSTATION, gpu, with_packages
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from trtship.doctor.diagnosis import judge
from trtship.doctor.records import Diagnosis, Finding, Machine, Package

BARE = structs.replace(WORKSTATION, packages={}, gpus=(), driver=None, kernel_driver=False, card="absent")


def of(diagnosis: Diagnosis, subject: str) -> Finding:
    (found,) = [f for f in diagnosis.findings if f.subject == subject]
    return found


def able(diagnosis: Diagnosis) -> list[bool]:
    """Make bundles, run them on the CPU, build ahead of time, build here, run plans here."""
    return [a.able for a in diagnosis.abilities]


def test_a_machine_with_all_that_is_needed_is_ok_and_can_do_everything() -> None:
    diagnosis = judge(WORKSTATION)
    assert diagnosis.ok
    assert {f.state for f in diagnosis.findings} == {"ok", "note"}
    assert able(diagnosis) == [True] * 5


def test_the_base_package_alone_lacks_everything_and_says_what_installs_it() -> None:
    diagnosis = judge(BARE)
    assert not diagnosis.ok
    assert able(diagnosis) == [False] * 5
    assert of(diagnosis, "torch").mend == "pip install 'trtship[make]'"
    assert of(diagnosis, "tensorrt-rtx").mend == "pip install 'trtship[rtx]'"
    assert of(diagnosis, "tensorrt").state == "note"


def test_a_machine_without_a_gpu_makes_bundles_and_builds_ahead_of_time() -> None:
    diagnosis = judge(structs.replace(BARE, packages=WORKSTATION.packages))
    assert able(diagnosis) == [True, True, True, False, False]
    assert {f.subject for f in diagnosis.findings if f.state in ("missing", "wrong")} == {"NVIDIA driver", "GPU"}
    assert of(diagnosis, "NVIDIA driver").mend == ""


def test_a_card_without_a_driver_gets_the_distributions_own_command() -> None:
    mend = of(judge(structs.replace(BARE, card="present")), "NVIDIA driver").mend
    assert mend.startswith("wget https://developer.download.nvidia.com/compute/cuda/repos/ubuntu2404/x86_64/")
    assert mend.endswith("sudo apt-get install -y nvidia-open")
    arm = structs.replace(BARE, card="present", architecture="aarch64")
    assert "/ubuntu2404/sbsa/" in of(judge(arm), "NVIDIA driver").mend
    elsewhere = of(judge(structs.replace(BARE, card="present", system="arch")), "NVIDIA driver")
    assert (elsewhere.state, elsewhere.mend) == ("missing", "")
    assert "docs.nvidia.com" in elsewhere.why


def test_a_driver_updated_under_a_running_one_asks_for_a_restart() -> None:
    machine = structs.replace(BARE, kernel_driver=True, driver_problem="Driver/library version mismatch (18)")
    assert (of(judge(machine), "NVIDIA driver").state, of(judge(machine), "NVIDIA driver").mend) == (
        "wrong",
        "sudo reboot",
    )


def test_hidden_gpus_are_told_from_absent_ones() -> None:
    found = of(judge(structs.replace(WORKSTATION, gpus=(), visible_devices="")), "GPU")
    assert (found.state, found.mend) == ("missing", "unset CUDA_VISIBLE_DEVICES")
    assert of(judge(structs.replace(WORKSTATION, gpus=())), "GPU").mend == ""


def test_a_family_that_cannot_be_imported_is_wrong_and_leaves_no_way_to_run_plans() -> None:
    error = "ImportError: libnvinfer.so.10: cannot open shared object file"
    machine = with_packages(tensorrt=Package(version="10.13.0.35", cuda="13", error=error), tensorrt_rtx=None)
    diagnosis = judge(machine)
    found = of(diagnosis, "tensorrt")
    assert (found.state, found.why) == ("wrong", error)
    assert found.mend == (
        "pip install --force-reinstall --extra-index-url https://pypi.nvidia.com 'tensorrt==10.13.0.35'"
    )
    assert able(diagnosis) == [True, True, False, False, False]


def test_one_family_that_fits_is_enough_when_the_other_does_not() -> None:
    machine = with_packages(
        structs.replace(WORKSTATION, gpus=(H100,)),
        tensorrt_rtx=Package(version="1.7.1.116", cuda="13"),
    )
    assert able(judge(machine)) == [True, True, True, False, False]
    both = judge(with_packages(machine, tensorrt=Package(version="10.13.0", cuda="13")))
    assert able(both) == [True] * 5
    assert both.abilities[-1].why == "with tensorrt"


def test_without_a_family_a_data_centre_machine_lacks_full_tensorrt_and_others_lack_the_rtx_one() -> None:
    none = with_packages(tensorrt_rtx=None)
    assert of(judge(none), "tensorrt-rtx").state == "missing"
    assert of(judge(none), "tensorrt").state == "note"
    data_centre = structs.replace(none, gpus=(H100,))
    assert of(judge(data_centre), "tensorrt-rtx").state == "note"
    assert of(judge(data_centre), "tensorrt").state == "missing"


def test_a_broken_torchvision_gets_the_mend_of_the_combination_that_explains_it() -> None:
    machine = with_packages(
        torch=Package(version="2.14.1+cpu", cuda="none"),
        torchvision=Package(version="0.29.1", error="RuntimeError: operator torchvision::nms does not exist"),
    )
    mend = "pip uninstall -y torch && pip install 'torch==2.14.1'"
    assert of(judge(machine), "torchvision").mend == mend


def test_torch_that_cannot_use_the_gpu_is_wrong_only_where_there_is_one() -> None:
    machine = structs.replace(WORKSTATION, torch_gpu_error="CUDA unknown error")
    assert [f.why for f in judge(machine).findings if f.topic == "fit"] == ["CUDA unknown error"]
    assert not [f for f in judge(structs.replace(machine, gpus=())).findings if f.topic == "fit"]


versions = st.from_regex(r"[0-9]{1,2}(\.[0-9]{1,3}){0,3}(\+cpu)?", fullmatch=True)
packages = st.builds(
    Package,
    version=versions,
    cuda=st.sampled_from(["", "none", "12", "13", "12.8", "13.0"]),
    error=st.sampled_from(["", "ImportError: [libnvinfer.so.10] {not} found"]),
    requires=st.lists(st.sampled_from(["torch==2.13.0", "torch<2", "numpy>=1", "[]"]), max_size=2).map(tuple),
)
names = st.sampled_from([*WORKSTATION.packages, "tensorrt", "onnxruntime-gpu", "torch-tensorrt-rtx", "trtship"])
gpus = st.builds(gpu, capability=st.sampled_from(["6.1", "7.5", "8.0", "8.9", "9.0", "10.0", "12.0"]))
machines = st.builds(
    Machine,
    python=st.sampled_from(["3.10.4", "3.11.7", "3.14.0rc2"]),
    pip=st.just("pip"),
    packages=st.dictionaries(names, packages),
    system=st.sampled_from(["", "ubuntu2404", "debian12", "fedora42"]),
    gpus=st.lists(gpus, max_size=3).map(tuple),
    driver=st.sampled_from([None, DRIVER, structs.replace(DRIVER, cuda="12.2")]),
    driver_problem=st.just("Driver Not Loaded"),
    card=st.sampled_from(["present", "absent", "unknown"]),
    kernel_driver=st.booleans(),
    container=st.booleans(),
    wsl=st.booleans(),
    visible_devices=st.sampled_from([None, "", "0"]),
    torch_gpu_error=st.sampled_from(["", "no kernel image"]),
)


@given(machines)
def test_any_machine_gets_a_diagnosis_whose_parts_agree(machine: Machine) -> None:
    diagnosis = judge(machine)
    assert diagnosis.ok == (not {"missing", "wrong"} & {f.state for f in diagnosis.findings})
    assert all(f.found and (f.state == "ok" or f.why) for f in diagnosis.findings)
    assert all("{" not in f.mend for f in diagnosis.findings)
    assert all(a.able or a.why for a in diagnosis.abilities)
    assert not (able(diagnosis)[4] and not machine.gpus)


def test_a_gpu_line_has_name_capability_and_memory() -> None:
    found = of(judge(structs.replace(WORKSTATION, gpus=(RTX_4090,))), "GPU 0").found
    assert found == "NVIDIA GeForce RTX 4090, compute capability 8.9, 24564 MiB"


def test_where_bundles_are_only_run_what_makes_them_is_worth_a_note() -> None:
    runtime = {name: WORKSTATION.packages[name] for name in ("onnxruntime", "tensorrt-rtx", "cuda-bindings")}
    diagnosis = judge(structs.replace(WORKSTATION, packages=runtime))
    assert diagnosis.ok
    assert able(diagnosis) == [False, True, True, True, True]
    torch = of(diagnosis, "torch")
    assert (torch.state, torch.mend) == ("note", "pip install 'trtship[make]'")
    assert torch.why.endswith("needed to make bundles, not to run them")


def test_a_runtime_without_onnxruntime_asks_for_the_runtimes_own_extra() -> None:
    lacking = structs.replace(WORKSTATION, packages={"tensorrt-rtx": WORKSTATION.packages["tensorrt-rtx"]})
    found = of(judge(lacking), "onnxruntime")
    assert (found.state, found.mend) == ("missing", "pip install 'trtship[rtx]'")


def test_half_of_what_makes_bundles_is_a_mistake_and_no_choice() -> None:
    diagnosis = judge(with_packages(torch=None))
    assert of(diagnosis, "torch").state == "missing"
    assert not diagnosis.ok
