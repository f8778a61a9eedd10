"""The driver is asked through its C interface: here through a small library that has it, and for real where it is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trtship.gpu import driver, driver_problem, list_gpus

LIBRARY = r"""
#include <stdlib.h>
#include <string.h>
typedef struct { unsigned long long total, free, used; } Memory;
static int gpus[2] = {0, 1};
static const char *uuids[2] = {"GPU-aaaa-1", "GPU-bbbb-2"};
static int put(const char *text, char *out, unsigned n) { strncpy(out, text, n); return 0; }
int nvmlInit_v2(void) { const char *code = getenv("STUB_INIT"); return code ? atoi(code) : 0; }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int code) { return code == 18 ? "Driver/library version mismatch" : "Unknown"; }
int nvmlSystemGetDriverVersion(char *out, unsigned n) { return put("580.65.06", out, n); }
int nvmlSystemGetCudaDriverVersion_v2(int *out) { *out = 13010; return 0; }
int nvmlDeviceGetCount_v2(unsigned *out) { *out = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **out) {
    const char *lost = getenv("STUB_LOST");
    if (lost && (unsigned)atoi(lost) == i) return 15;
    *out = &gpus[i];
    return 0;
}
int nvmlDeviceGetHandleByUUID(const char *uuid, void **out) {
    *out = &gpus[1];
    return strcmp(uuid, "MIG-cccc-3") ? 6 : 0;
}
int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(void *part, void **out) { *out = part; return 0; }
int nvmlDeviceGetHandleByPciBusId_v2(const char *id, void **out) {
    for (int i = 0; i < 2; i++) if (!strcmp(id, i ? "0000:b2:00.0" : "0000:a1:00.0")) { *out = &gpus[i]; return 0; }
    return 6;
}
int nvmlDeviceGetName(void *gpu, char *out, unsigned n) {
    return put(getenv("STUB_ALIKE") ? "Twin" : *(int *)gpu ? "Second" : "First", out, n);
}
int nvmlDeviceGetUUID(void *gpu, char *out, unsigned n) { return put(uuids[*(int *)gpu], out, n); }
int nvmlDeviceGetCudaComputeCapability(void *gpu, int *major, int *minor) {
    *major = *(int *)gpu ? 9 : 8;
    *minor = *(int *)gpu ? 0 : 9;
    return 0;
}
int nvmlDeviceGetMemoryInfo(void *gpu, Memory *out) { out->total = 24ULL << 30; return 0; }
"""
CUDA = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
static int order[2], count = -1;
int cuInit(unsigned flags) {  /* the second on the bus is the faster one */
    const char *asked = getenv("CUDA_DEVICE_ORDER"), *visible = getenv("CUDA_VISIBLE_DEVICES");
    FILE *log = fopen(getenv("STUB_STARTS"), "a");
    fprintf(log, "%d\n", getpid());
    fclose(log);
    if (getenv("STUB_BROKEN")) return 999;
    int by_bus = asked && !strcmp(asked, "PCI_BUS_ID");
    for (count = 0; count < 2; count++) order[count] = by_bus ? count : 1 - count;
    if (visible) { order[0] = order[atoi(visible)]; count = 1; }
    return 0;
}
int cuDeviceGetCount(int *out) { *out = count; return count < 0 ? 3 : 0; }
int cuDeviceGet(int *out, int number) { *out = order[number]; return 0; }
int cuDeviceGetPCIBusId(char *out, int n, int device) {
    strncpy(out, device ? "0000:b2:00.0" : "0000:a1:00.0", n);
    return 0;
}
"""
ASK = """
import json, msgspec
from trtship.gpu import driver, driver_problem, list_gpus
print(json.dumps({"gpus": msgspec.to_builtins(list_gpus()), "driver": msgspec.to_builtins(driver()),
                  "problem": driver_problem()}))
"""


def compiled(folder: Path, **sources: str) -> Path:
    """The folder, with a shared library of each source."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    for name, text in sources.items():
        source = folder / f"{name}.c"
        source.write_text(text)
        target = folder / f"lib{name.replace('_', '-')}.so.1"
        subprocess.run([compiler, "-shared", "-fPIC", f"-Wl,-soname,{target.name}", "-o", target, source], check=True)
    return folder


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("nvml"), nvidia_ml=LIBRARY)


@pytest.fixture(scope="module")
def with_cuda(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("cuda"), nvidia_ml=LIBRARY, cuda=CUDA)


def ask(library: Path, code: str = ASK, **environment: str) -> Any:
    clean = {k: v for k, v in os.environ.items() if k not in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER")}
    paths = {"LD_LIBRARY_PATH": str(library), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=clean | paths | environment, capture_output=True, check=True
    )
    return json.loads(done.stdout)


def test_driver_and_gpus_are_read(library: Path) -> None:
    said = ask(library)
    assert said["driver"] == {"version": "580.65.06", "cuda": "13.1"}
    assert said["problem"] == ""
    assert said["gpus"][1] == {
        "index": 1,
        "name": "Second",
        "compute_capability": "9.0",
        "memory_mib": 24576,
        "driver": "580.65.06",
        "uuid": "GPU-bbbb-2",
    }


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        ("", []),
        ("-1", []),
        ("1", ["Second"]),
        ("1, 0", ["Second", "First"]),
        ("0,7,1", ["First"]),
        ("GPU-bbbb", ["Second"]),
        ("GPU-", []),
        ("MIG-cccc-3", ["Second"]),
        ("MIG-other", []),
    ],
)
def test_cuda_visible_devices_chooses_orders_and_hides(library: Path, visible: str, names: list[str]) -> None:
    gpus = ask(library, CUDA_VISIBLE_DEVICES=visible)["gpus"]
    assert [gpu["name"] for gpu in gpus] == names
    assert [gpu["index"] for gpu in gpus] == list(range(len(names)))


def test_a_lost_gpu_does_not_hide_the_other(library: Path) -> None:
    assert [gpu["name"] for gpu in ask(library, STUB_LOST="0")["gpus"]] == ["Second"]


def test_a_driver_that_does_not_answer_says_why_and_has_no_gpus(library: Path) -> None:
    said = ask(library, STUB_INIT="18")
    assert said == {
        "gpus": [],
        "driver": None,
        "problem": "Driver/library version mismatch (nvmlInit_v2 returned 18)",
    }


def test_a_library_that_lacks_a_function_is_no_driver(tmp_path: Path) -> None:
    assert ask(compiled(tmp_path, nvidia_ml="int nothing;")) == {
        "gpus": [],
        "driver": None,
        "problem": "libnvidia-ml.so.1 has no nvmlInit_v2",
    }


NAMES = """
import ctypes, json, os
from trtship.gpu import list_gpus
def names():
    return [gpu.name for gpu in list_gpus()]
"""


@pytest.fixture
def starts(tmp_path: Path) -> Path:
    """Where the stand-in for CUDA writes the process in which it is started, a line for each time."""
    (tmp_path / "starts").touch()
    return tmp_path / "starts"


def names_of(library: Path, starts: Path, code: str, **environment: str) -> Any:
    """What `code` made of `said`."""
    return ask(library, f"{NAMES}{code}\nprint(json.dumps(said))", STUB_STARTS=str(starts), **environment)


@pytest.mark.parametrize(
    ("environment", "names"),
    [
        ({}, ["Second", "First"]),
        ({"CUDA_DEVICE_ORDER": "FASTEST_FIRST"}, ["Second", "First"]),
        ({"CUDA_VISIBLE_DEVICES": "0"}, ["Second"]),
        ({"CUDA_VISIBLE_DEVICES": "1"}, ["First"]),
        ({"CUDA_VISIBLE_DEVICES": "0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, ["First"]),
        ({"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, ["First", "Second"]),
        ({"CUDA_VISIBLE_DEVICES": "GPU-aaaa,GPU-bbbb"}, ["First", "Second"]),
    ],
)
def test_different_gpus_are_counted_as_cuda_counts_them(
    with_cuda: Path, starts: Path, environment: dict[str, str], names: list[str]
) -> None:
    assert names_of(with_cuda, starts, "said = names()", **environment) == names


def test_cuda_is_started_in_another_process_once_and_never_in_ours(with_cuda: Path, starts: Path) -> None:
    """It could not be used after a fork."""
    code = """
import threading
threads = [threading.Thread(target=names) for _ in range(3)]
[one.start() for one in threads], [one.join() for one in threads]
said = [names(), names(), os.getpid()]
said.append(ctypes.CDLL("libcuda.so.1").cuDeviceGetCount(ctypes.byref(ctypes.c_int())))  # 3: it was not started
"""
    first, second, pid, state = names_of(with_cuda, starts, code)
    assert first == second == ["Second", "First"]
    assert state == 3
    (started,) = starts.read_text().split()
    assert int(started) != pid


@pytest.mark.parametrize(
    "environment",
    [
        {"STUB_ALIKE": "1"},
        {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"},
        {"CUDA_VISIBLE_DEVICES": "GPU-aaaa"},
        {"CUDA_VISIBLE_DEVICES": ""},
    ],
)
def test_where_the_order_is_known_cuda_is_started_nowhere(
    with_cuda: Path, starts: Path, environment: dict[str, str]
) -> None:
    names_of(with_cuda, starts, "said = names()", **environment)
    assert starts.read_text() == ""


@pytest.mark.parametrize("alike", [{}, {"STUB_ALIKE": "1"}])
def test_once_cuda_has_been_started_it_is_asked_itself(with_cuda: Path, starts: Path, alike: dict[str, str]) -> None:
    """What the environment says later on changes nothing for CUDA."""
    code = """
ctypes.CDLL("libcuda.so.1").cuInit(0)
os.environ["CUDA_VISIBLE_DEVICES"] = "1"
said = [gpu.uuid for gpu in list_gpus()]
"""
    assert names_of(with_cuda, starts, code, **alike) == ["GPU-bbbb-2", "GPU-aaaa-1"]
    assert len(starts.read_text().split()) == 1


def test_where_cuda_does_not_tell_the_bus_orders_the_gpus(with_cuda: Path, starts: Path) -> None:
    assert names_of(with_cuda, starts, "said = names()", STUB_BROKEN="1") == ["First", "Second"]
    nobody = "import sys\nsys.executable = ''\nsaid = names()"
    assert names_of(with_cuda, starts, nobody) == ["First", "Second"]


def test_this_machine_agrees_with_nvidia_smi() -> None:
    smi = shutil.which("nvidia-smi")
    if smi is None:
        assert (list_gpus() == ()) == (driver() is None or os.environ.get("CUDA_VISIBLE_DEVICES") is not None)
        assert (driver_problem() == "") == (driver() is not None)
        return
    fields = "name,compute_cap,driver_version,uuid"
    rows = subprocess.run([smi, f"--query-gpu={fields}", "--format=csv,noheader"], capture_output=True, text=True)
    ours = [(g.name, g.compute_capability, g.driver, g.uuid) for g in list_gpus()]
    assert sorted(ours) == sorted(tuple(row.split(", ")) for row in rows.stdout.splitlines())
