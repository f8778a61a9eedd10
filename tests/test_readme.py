"""README tells the truth where a machine can check it."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_tables_are_what_the_results_say() -> None:
    done = subprocess.run([sys.executable, ROOT / "benchmarks" / "tables.py", "--check"], check=False)
    assert done.returncode == 0, "run python benchmarks/tables.py"


@pytest.mark.parametrize("line", re.findall(r"^    (trtship .*?(?:\\\n.*?)?)(?:  +#.*)?$", README, re.MULTILINE))
def test_every_command_shown_parses(line: str) -> None:
    from trtship.cli.main import _parser

    _parser().parse(shlex.split(line.replace("\\\n", " "))[1:])


def test_the_python_shown_uses_names_that_exist() -> None:
    import trtship

    for name in set(re.findall(r"trtship\.(\w+)\(", README)):
        assert name in trtship.__all__
