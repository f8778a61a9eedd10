"""Exporters that crash, are killed or interrupted: an error in this process, and nothing left behind."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trtship.errors import GraphError, OutputError
from trtship.export import onnx_from_torch
from trtship.export.isolated import ChildTraceback, ExporterDied, run_isolated
from trtship.session.onnxruntime import OnnxRuntimeSession
from trtship.spec import TensorSpec

IMAGE = (TensorSpec(name="image", shape=("B", 3, 8, 8)),)


class Crashes(torch.nn.Module):
    """Runs in PyTorch, and takes the process down while it is exported."""

    def __init__(self, *, dynamo: bool, torchscript: bool) -> None:
        super().__init__()
        self.dynamo, self.torchscript = dynamo, torchscript

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if self.dynamo and torch.compiler.is_exporting():
            os.abort()
        if self.torchscript and torch.jit.is_tracing():
            ctypes.string_at(0)
        return image.mean((2, 3))


def test_a_crash_of_one_exporter_leaves_the_other(tmp_path: Path) -> None:
    report = onnx_from_torch(
        Crashes(dynamo=True, torchscript=False).eval(), tmp_path / "m.onnx", inputs=IMAGE, outputs=["output"]
    )  # fmt: skip
    assert report.exporter == "torchscript"
    assert "its process was ended by SIGABRT" in report.fell_back
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_a_crash_of_both_is_an_error_that_says_how_the_process_ended(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="the dynamo exporter crashed on this model") as caught:
        onnx_from_torch(
            Crashes(dynamo=True, torchscript=True).eval(), tmp_path / "m.onnx", inputs=IMAGE, outputs=["output"]
        )  # fmt: skip
    assert "SIGABRT" in caught.value.why
    assert "compiled code" in caught.value.do
    assert list(tmp_path.iterdir()) == []


def test_a_segfault_of_the_exporter_that_was_asked_for(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="the TorchScript exporter crashed") as caught:
        onnx_from_torch(
            Crashes(dynamo=False, torchscript=True).eval(),
            tmp_path / "m.onnx",
            inputs=IMAGE,
            outputs=["output"],
            exporter="torchscript",
        )
    assert "SIGSEGV, at" in caught.value.why
    assert "test_isolated.py" in caught.value.why
    assert "`ctypes.string_at(0)`" in caught.value.why


def run(function: Any, folder: Path, module: torch.nn.Module | None = None) -> Any:
    return run_isolated(function, module or torch.nn.Linear(2, 2), folder=folder, what="the exporter")


def test_a_process_that_is_killed_is_said_to_have_run_out_of_memory(tmp_path: Path) -> None:
    with pytest.raises(ExporterDied) as caught:
        run(lambda module: os.kill(os.getpid(), signal.SIGKILL), tmp_path)
    assert "SIGKILL" in caught.value.why
    assert "memory runs out" in caught.value.why
    assert "free some memory" in caught.value.do


def test_nothing_of_the_module_changes_here(tmp_path: Path) -> None:
    module = torch.nn.Linear(2, 2)
    before = module.weight.detach().clone()

    def damage(module: Any) -> int:
        with torch.no_grad():
            module.weight.zero_()
        module.double().train()
        os.environ["DAMAGED"] = "yes"
        return os.getpid()

    assert run(damage, tmp_path, module) != os.getpid()
    assert torch.equal(module.weight, before)
    assert module.weight.dtype == torch.float32
    assert "DAMAGED" not in os.environ


def test_errors_come_back_with_the_childs_traceback(tmp_path: Path) -> None:
    def fails(module: Any) -> None:
        raise GraphError("it failed", why="because", do="something else")

    with pytest.raises(GraphError, match="it failed") as caught:
        run(fails, tmp_path)
    assert (caught.value.why, caught.value.do) == ("because", "something else")
    assert isinstance(caught.value.__cause__, ChildTraceback)
    assert "in fails" in str(caught.value.__cause__)


def test_a_full_disk_comes_back_as_itself(tmp_path: Path) -> None:
    def full(module: Any) -> None:
        raise OSError(28, "No space left on device", "/somewhere")

    with pytest.raises(OSError, match="No space left") as caught:
        run(full, tmp_path)
    assert (caught.value.errno, caught.value.filename) == (28, "/somewhere")
    assert not isinstance(caught.value, OutputError)


def test_a_bug_in_the_child_is_no_silent_exit(tmp_path: Path) -> None:
    with pytest.raises(ExporterDied, match="crashed") as caught:
        run(lambda module: 1 / 0, tmp_path)
    assert "exit code 1" in caught.value.why
    assert "ZeroDivisionError" in caught.value.why


def test_threads_of_pytorch_and_onnxruntime_before_it_do_not_make_it_hang(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        module = torch.nn.Sequential(torch.nn.Conv2d(3, 32, 3), torch.nn.ReLU(), torch.nn.Conv2d(32, 32, 3))
        for name in ("one.onnx", "two.onnx"):
            with torch.no_grad():
                module(torch.randn(16, 3, 128, 128))  # OpenMP's threads are there now
            onnx_from_torch(
                module.eval().requires_grad_(False),
                tmp_path / name,
                inputs=IMAGE,
                outputs=["output"],
                exporter="torchscript",
            )
            with OnnxRuntimeSession(tmp_path / name) as session:
                session.infer({"image": np.zeros((16, 3, 8, 8), np.float32)})
                assert run(lambda module: float(module(torch.randn(8, 3, 64, 64)).sum()), tmp_path, module) is not None
    finally:
        torch.set_num_threads(threads)


def test_an_interrupt_ends_the_child_and_leaves_nothing(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        """
import os, sys, time, torch
from pathlib import Path
from trtship.export import onnx_from_torch
from trtship.spec import TensorSpec

class Sleeps(torch.nn.Module):
    def forward(self, image):
        if torch.compiler.is_exporting():
            Path(sys.argv[1], "child").write_text(str(os.getpid()))
            time.sleep(100)
        return image.mean((2, 3))

try:
    onnx_from_torch(Sleeps().eval(), Path(sys.argv[1], "out", "m.onnx"),
                    inputs=(TensorSpec(name="image", shape=("B", 3, 8, 8)),), outputs=["output"])
except KeyboardInterrupt:
    print("interrupted")
"""
    )
    (tmp_path / "out").mkdir()
    (tmp_path / "tmp").mkdir()
    process = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)],
        env={**os.environ, "TMPDIR": str(tmp_path / "tmp")},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    child = tmp_path / "child"
    until = time.monotonic() + 60
    while not (child.exists() and child.read_text()) and time.monotonic() < until:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to all of the group
    said, _ = process.communicate(timeout=30)
    assert said == "interrupted\n"
    with pytest.raises(ProcessLookupError):
        os.kill(int(child.read_text()), 0)
    assert list((tmp_path / "out").iterdir()) == []
    assert [p for p in (tmp_path / "tmp").iterdir() if p.name.startswith("trtship")] == []
