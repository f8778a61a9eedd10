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
int nvmlDeviceGetName(void *gpu, char *out, unsigned n) { return put(*(int *)gpu ? "Second" : "First", out, n); }
int nvmlDeviceGetUUID(void *gpu, char *out, unsigned n) { return put(uuids[*(int *)gpu], out, n); }
int nvmlDeviceGetCudaComputeCapability(void *gpu, int *major, int *minor) {
    *major = *(int *)gpu ? 9 : 8;
    *minor = *(int *)gpu ? 0 : 9;
    return 0;
}
int nvmlDeviceGetMemoryInfo(void *gpu, Memory *out) { out->total = 24ULL << 30; return 0; }
"""
ASK = """
import json, msgspec
from trtship.gpu import driver, driver_problem, list_gpus
print(json.dumps({"gpus": msgspec.to_builtins(list_gpus()), "driver": msgspec.to_builtins(driver()),
                  "problem": driver_problem()}))
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    folder = tmp_path_factory.mktemp("nvml")
    (folder / "nvml.c").write_text(LIBRARY)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", folder / "libnvidia-ml.so.1", folder / "nvml.c"], check=True)
    return folder


def ask(library: Path, **environment: str) -> Any:
    clean = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
    paths = {"LD_LIBRARY_PATH": str(library), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", ASK], env=clean | paths | environment, capture_output=True, check=True)
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


def test_a_library_that_lacks_a_function_is_no_driver(tmp_path: Path, library: Path) -> None:
    (tmp_path / "empty.c").write_text("int nothing;")
    target = tmp_path / "libnvidia-ml.so.1"
    subprocess.run([str(shutil.which("cc")), "-shared", "-fPIC", "-o", target, tmp_path / "empty.c"], check=True)
    assert ask(tmp_path) == {"gpus": [], "driver": None, "problem": "libnvidia-ml.so.1 has no nvmlInit_v2"}


def test_this_machine_agrees_with_nvidia_smi() -> None:
    smi = shutil.which("nvidia-smi")
    if smi is None:
        assert (list_gpus() == ()) == (driver() is None or os.environ.get("CUDA_VISIBLE_DEVICES") is not None)
        assert (driver_problem() == "") == (driver() is not None)
        return
    fields = "name,compute_cap,driver_version,uuid"
    rows = subprocess.run([smi, f"--query-gpu={fields}", "--format=csv,noheader"], capture_output=True, text=True)
    ours = [(g.name, g.compute_capability, g.driver, g.uuid) for g in list_gpus()]
    assert ours == [tuple(row.split(", ")) for row in rows.stdout.splitlines()]
