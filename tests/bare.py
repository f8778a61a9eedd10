"""Python environments that lack things: one that only links some packages, and a real `pip install trtship[rtx]`."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tomllib
import venv
from collections.abc import Iterable, Mapping
from pathlib import Path

from filelock import FileLock

ROOT = Path(__file__).parents[1]
SITE = Path("lib") / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"


def empty(home: Path) -> Path:
    """A Python with nothing in its site-packages, not even pip."""
    venv.create(home, with_pip=False, symlinks=True)
    return home / "bin" / "python"


def linked(home: Path, distributions: Iterable[str]) -> Path:
    """A Python whose site-packages has links to these distributions of the one that runs the tests, and no more."""
    python = empty(home)
    for name in distributions:
        files = importlib.metadata.files(name) or []
        for top in {file.parts[0] for file in files if not file.parts[0].startswith("..")}:
            if not (home / SITE / top).exists():
                (home / SITE / top).symlink_to(Path(str(importlib.metadata.distribution(name).locate_file(top))))
    return python


def torch_free(folder: Path) -> Path:
    """A Python into which `pip install -c constraints.txt trtship[rtx]` was run, from a wheel of this checkout.

    It is made in `folder`, in 15 s, and kept there: made anew where the constraints or what trtship asks for have
    changed; where only trtship's own files have, the wheel alone is installed again.
    """
    home = folder / "torch-free"
    python = home / "bin" / "python"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "torch-free.lock"):
        asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        wants = repr((sys.version, asked["dependencies"], asked["optional-dependencies"]["rtx"]))
        everything = _digest({"wants": wants.encode(), "constraints": (ROOT / "constraints.txt").read_bytes()})
        ours = _digest({str(path.relative_to(ROOT)): path.read_bytes() for path in shipped()})
        if _told(home / "everything") != everything:
            shutil.rmtree(home, ignore_errors=True)
            empty(home)
            _pip(python, "install", "-c", str(ROOT / "constraints.txt"), f"{_wheel(folder)}[rtx]")
            (home / "ours").write_text(ours)
            (home / "everything").write_text(everything)
        elif _told(home / "ours") != ours:
            _pip(python, "install", "--no-deps", "--force-reinstall", str(_wheel(folder)))
            (home / "ours").write_text(ours)
    return python


def shipped() -> list[Path]:
    """The files that make up trtship's wheel, the data among its modules and what it is built from."""
    package = [p for p in (ROOT / "src").rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    mine = [path for path in package if ".egg-info" not in str(path)]
    return sorted([*mine, ROOT / "pyproject.toml", ROOT / "README.md", ROOT / "LICENSE"])


def _wheel(folder: Path) -> Path:
    """Built from a copy of the checkout: an old build/ in it would add its files to the wheel."""
    shutil.rmtree(folder / "wheel", ignore_errors=True)
    for path in shipped():
        copy = folder / "wheel" / "source" / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    _pip(None, "wheel", "--no-deps", "-w", str(folder / "wheel"), str(folder / "wheel" / "source"))
    (wheel,) = (folder / "wheel").glob("*.whl")
    return wheel


def _pip(python: Path | None, verb: str, *arguments: str) -> None:
    """pip of the Python that runs the tests, on behalf of another one."""
    other = () if python is None else ("--python", str(python))
    command = [sys.executable, "-m", "pip", *other, verb, "-q", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"


def _digest(parts: Mapping[str, bytes]) -> str:
    whole = hashlib.sha256()
    for name, content in parts.items():
        whole.update(f"{name} {len(content)} ".encode() + content)
    return whole.hexdigest()


def _told(file: Path) -> str:
    return file.read_text() if file.exists() else ""


def run_there(
    python: Path, *arguments: str | Path, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """`python ARGUMENTS`, seeing nothing of this checkout or of the Python that runs the tests but `environment`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    return subprocess.run(
        [python, *arguments], cwd=cwd, env=kept | environment, capture_output=True, text=True, check=False
    )
