"""Which GPU's state is told. No GPU here: the driver's tool is a script that says what it was asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from trtship.bench import gpu_state as module
from trtship.gpu import Gpu


def gpu(index: int, uuid: str) -> Gpu:
    return Gpu(index=index, name="G", compute_capability="9.0", memory_mib=1, driver="1", uuid=uuid)


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tool, log = tmp_path / "nvidia-smi", tmp_path / "asked"
    answers = 'case "$*" in *compute-apps*) printf "7\\n8\\n9\\n";; *) echo 1, 2, 0x0, 3, 4;; esac'
    tool.write_text(f'#!/bin/sh\necho "$@" >> {log}\n{answers}\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return log


def test_the_state_is_that_of_the_visible_gpu_whatever_the_tool_counts(
    asked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With CUDA_VISIBLE_DEVICES=1 the first visible GPU is the second of nvidia-smi."""
    monkeypatch.setattr(module, "list_gpus", lambda: (gpu(0, "GPU-b"),))
    state = module.gpu_state(ours=2)
    assert state is not None
    assert (state.sm_mhz, state.other_processes) == ("1", 1)
    assert [line.split()[0] for line in asked.read_text().splitlines()] == ["--id=GPU-b"] * 2


def test_a_gpu_that_is_not_there_has_no_state(asked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "list_gpus", lambda: ())
    assert module.gpu_state() is None
    assert not asked.exists()
