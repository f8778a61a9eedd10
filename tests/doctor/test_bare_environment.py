"""The doctor where nothing but the base package's dependencies is installed: a real virtual environment."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

import trtship

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
    """A Python whose site-packages has links to the base packages, and nothing else."""
    home = tmp_path_factory.mktemp("bare")
    venv.create(home, with_pip=False, symlinks=True)
    site = home / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    for name in BASE:
        files = importlib.metadata.files(name) or []
        for top in {file.parts[0] for file in files if not file.parts[0].startswith("..")}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(importlib.metadata.distribution(name).locate_file(top))))
    return home / "bin" / "python"


def run(python: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    source = Path(trtship.__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": str(source)}
    return subprocess.run([python, "-c", RUN, *arguments], env=environment, capture_output=True, text=True, check=False)


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
