"""What else may explain a timing: clocks, throttling, temperature, and other processes on the GPU."""

from __future__ import annotations

import shutil
import subprocess

from trtship.gpu import list_gpus
from trtship.spec import Record

QUERY = "clocks.sm,clocks.mem,clocks_event_reasons.active,temperature.gpu,power.draw"


class GpuState(Record, frozen=True):
    """As nvidia-smi reports it: SM and memory clock in MHz, the mask of reasons why clocks are held down
    (0x0: none), temperature in degrees Celsius, power in W, and the number of other compute processes."""

    sm_mhz: str
    memory_mhz: str
    throttling: str
    temperature_c: str
    power_w: str
    other_processes: int


def gpu_state(device: int = 0, *, ours: int = 1) -> GpuState | None:
    """The state now of a GPU as CUDA counts them here; None where nvidia-smi is missing or does not answer. `ours`
    processes are not counted as others."""
    gpus = list_gpus()
    if shutil.which("nvidia-smi") is None or device >= len(gpus):
        return None
    # nvidia-smi counts the GPUs that CUDA_VISIBLE_DEVICES hides as well
    base = ["nvidia-smi", f"--id={gpus[device].uuid}", "--format=csv,noheader,nounits"]
    try:
        found = subprocess.run([*base, f"--query-gpu={QUERY}"], capture_output=True, text=True, timeout=20, check=True)
        apps = subprocess.run(
            [*base, "--query-compute-apps=pid"], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    fields = [field.strip() for field in found.stdout.strip().split(",")]
    if len(fields) != 5:
        return None
    pids = [line for line in apps.stdout.split() if line.isdecimal()]
    return GpuState(
        sm_mhz=fields[0],
        memory_mhz=fields[1],
        throttling=fields[2],
        temperature_c=fields[3],
        power_w=fields[4],
        other_processes=max(0, len(pids) - ours),
    )
