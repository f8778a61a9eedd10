"""The doctor where nothing but the base package's dependencies is installed: a real virtual environment."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

import trtship
from bare import linked, run_there

BASE = ("numpy", "pillow", "msgspec", "rich", "markdown-it-py", "mdurl", "pygments", "filelock", "packaging")
RUN = """
import argparse, sys
from trtship.cli import doctor
from trtship.cli.console import Console
code = doctor.run(argparse.Namespace(), Console(json="--json" in sys.argv, quiet=True))
assert not {"torch", "onnx", "onnxruntime", "tensorrt", "tensorrt_rtx"} & set(sys.modules)
sys.exit(code)
"""


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return linked(tmp_path_factory.mktemp("bare"), BASE)


def run(python: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_there(python, "-c", RUN, *arguments, PYTHONPATH=str(Path(trtship.__file__).parents[1]))


def test_with_the_base_package_alone_it_lists_what_is_missing_and_exits_3(bare: Path) -> None:
    done = run(bare, "--json")
    assert done.returncode == 3, done.stderr
    diagnosis = json.loads(done.stdout)
    found = {f["subject"]: f for f in diagnosis["findings"]}
    assert diagnosis["ok"] is False
    assert found["Python"]["state"] == "ok"
    assert found["torch"]["state"] == found["onnxruntime"]["state"] == "missing"
    assert found["torch"]["mend"].endswith("install 'trtship[make]'")
    assert [a["able"] for a in diagnosis["abilities"]] == [False] * 5


def test_the_table_names_every_state_in_words_and_keeps_commands_on_one_line(bare: Path) -> None:
    done = run(bare)
    assert done.returncode == 3, done.stderr
    assert "missing" in done.stdout
    commands = [line for line in done.stdout.splitlines() if line.endswith("install 'trtship[make]'")]
    assert len(commands) == 1
    assert str(bare) in commands[0]  # its own pip, not the one that happens to be on the PATH
