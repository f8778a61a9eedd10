"""Whether packages really import: tried in processes of their own, which a broken native library may kill."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from trtship.spec import Record, from_json

PROBE = Path(__file__).with_name("_probe.py")
TIMEOUT_S = 120.0

# Each row is one process, so that a library loaded by one row cannot make another row's import succeed.
ROWS = (
    ("torch", "torchvision"),
    ("onnx", "onnxsim", "onnxruntime"),
    ("tensorrt_rtx",),
    ("tensorrt",),
    ("cuda.bindings.runtime",),
)


class Import(Record, frozen=True):
    """One module's import: `error` is empty when it worked. The rest is what only an import can tell."""

    module: str
    error: str
    providers: tuple[str, ...] = ()
    gpu_error: str = ""


def try_imports(rows: Sequence[Sequence[str]] = ROWS, *, timeout_s: float = TIMEOUT_S) -> dict[str, Import]:
    """Import what is installed of `rows`; maps module names to what happened. Modules not found are left out."""
    present = [[name for name in row if _is_there(name)] for row in rows]
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        results = pool.map(lambda row: _try_row(row, timeout_s), present)
    return {result.module: result for row in results for result in row}


def _is_there(module: str) -> bool:
    """Whether the module's top-level package exists. (Looking for the module itself would import its parents.)"""
    return importlib.util.find_spec(module.split(".")[0]) is not None


def _try_row(modules: Sequence[str], timeout_s: float) -> list[Import]:
    """A process that dies is blamed on the module it was importing; another one goes on with the rest."""
    results: list[Import] = []
    while len(results) < len(modules):
        rest = modules[len(results) :]
        output, ending = _run(rest, timeout_s)
        results += [from_json(line, Import, what="an import's result") for line in output.splitlines()]
        if len(results) < len(modules):
            results.append(Import(module=modules[len(results)], error=ending))
    return results


def _run(modules: Sequence[str], timeout_s: float) -> tuple[bytes, str]:
    """The probe's whole lines, and how it ended."""
    # -P: a file in the working folder that is called like a package must not pass for it
    command = [sys.executable, "-P", str(PROBE), *modules]
    try:
        done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired as expired:
        return _whole_lines(expired.stdout or b""), f"importing it took longer than {timeout_s:g} s"
    code = done.returncode
    ending = f"importing it killed Python with {_signal(-code)}" if code < 0 else f"importing it ended Python ({code})"
    return _whole_lines(done.stdout), ending


def _whole_lines(output: bytes) -> bytes:
    return output[: output.rfind(b"\n") + 1]


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
