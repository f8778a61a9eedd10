"""The real command, run as users run it: in a process of its own, in a folder of its own."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import trtship
from trtship.cli.main import main

MODEL = """
import torch

class Small(torch.nn.Module):
    trtship_inputs = ["input=Bx1x8x8"]
    trtship_labels = ["zero", "one", "two"]
    trtship_preprocess = {"mode": "L", "exif_transpose": False, "steps": [
        {"op": "resize", "height": 8, "width": 8, "fit": "exact", "interpolation": "bilinear"},
        {"op": "rescale", "factor": 1 / 255}]}

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 4, 3)
        self.head = torch.nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.conv(x).relu().mean((2, 3)))

class Frozen(Small):
    def forward(self, x):
        share = int(x.shape[0]) / x.new_ones(x.shape[0]).sum()
        return super().forward(x.reshape(int(x.shape[0]), 1, 8, 8) * share)

def small():
    torch.manual_seed(0)
    return Small()

def frozen():
    torch.manual_seed(0)
    return Frozen()
"""
QUICK = ("--exporter", "torchscript", "--precision", "fp32", "--batch", "1:2:4")
"""Options of a deploy that make it quick."""

MESSAGE = re.compile(r"^error: (?P<what>.+)\n  why: (?P<why>.+)\n  do:  (?P<do>.+)\n\Z", re.MULTILINE)


def environment(**more: str) -> dict[str, str]:
    source = str(Path(trtship.__file__).parents[1])
    path = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **more}


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Workplace:
    """A folder to work in, with a model, pictures and graphs in it, and a TMPDIR that should always end up empty."""

    def __init__(self, folder: Path, shared: Path) -> None:
        self.folder, self.temporary, self.cache = folder / "work", folder / "tmp", shared / "cache"
        self.folder.mkdir()
        self.temporary.mkdir()
        # a link: what a model's file is called is part of what the cache knows it by
        (self.folder / "model.py").symlink_to(shared / "model.py")
        Image.linear_gradient("L").save(self.folder / "picture.png")

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def environment(self, **more: str) -> dict[str, str]:
        return environment(**{"TMPDIR": str(self.temporary), "TRTSHIP_CACHE": str(self.cache), **more})

    def run(self, *arguments: str | Path, env: Mapping[str, str] | None = None, **options: Any) -> Done:
        command = [sys.executable, "-m", "trtship", *map(os.fspath, arguments)]
        settings = {"cwd": self.folder, "env": self.environment(**(env or {})), "capture_output": True, **options}
        done = subprocess.run(command, text=True, check=False, timeout=300, **settings)
        return Done(done.returncode, done.stdout or "", done.stderr or "")

    def listing(self) -> dict[str, str]:
        """Every path below, with the SHA-256 of files and the aim of links."""
        return {str(path.relative_to(self.folder)): _content(path) for path in sorted(self.folder.rglob("*"))}

    def left_over(self) -> list[str]:
        """What is in TMPDIR that no library keeps there for itself."""
        names = [path.name for path in self.temporary.iterdir()]
        return [name for name in names if not name.startswith("torchinductor_")]  # torch's compiler cache

    def refuses(self, *arguments: str | Path, code: int = 2, **options: Any) -> str:
        """Run what must be refused with one clear message, leaving nothing behind; returns that message."""
        before = self.listing()
        done = self.run(*arguments, **options)
        assert (done.code, done.out) == (code, ""), done
        assert "Traceback" not in done.err
        assert done.err.count("error: ") == 1, done.err
        message = MESSAGE.search(done.err)
        assert message is not None, done.err
        assert self.listing() == before
        assert self.left_over() == []
        return message[0]


def run_here(*arguments: str | Path, capsys: pytest.CaptureFixture[str]) -> Done:
    """The command in this process, in its current folder: for what needs no process of its own, which takes seconds."""
    capsys.readouterr()
    code = main([os.fspath(one) for one in arguments])
    said = capsys.readouterr()
    return Done(code, said.out, said.err)


def _content(path: Path) -> str:
    if path.is_symlink():
        return f"-> {os.readlink(path)}"
    return "folder" if path.is_dir() else hashlib.sha256(path.read_bytes()).hexdigest()
