"""Fixtures of the passes' tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


@pytest.fixture(scope="session")
def swin(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Callable[..., Path]:
    """`swin("timm", simple=True)`: the ONNX file of a model in `swins.SWINS`, made once a test run."""
    from swins import export, make

    from trtship.passes import simplify

    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "swins"
    folder.mkdir(exist_ok=True)

    def file(name: str, *, simple: bool = False) -> Path:
        path = folder / f"{name}{'-simple' if simple else ''}.onnx"
        source = file(name) if simple else None
        with FileLock(folder / f"{path.stem}.lock"):
            if not path.exists():
                draft = path.with_suffix(".partial")
                if source is not None:
                    assert simplify(source, draft, sizes=[{"B": 2}]).kept == "simplified"
                else:
                    export(*make(name), draft)
                draft.rename(path)
        return path

    return file
