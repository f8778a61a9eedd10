"""Fixtures that several rooms' tests share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Callable[[str], Path]:
    """`exported("swin")`: the ONNX file of a model in `graphs.SMALL`, exported once a test run."""
    from graphs import export_small

    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "exported"
    folder.mkdir(exist_ok=True)

    def export(name: str) -> Path:
        path = folder / f"{name}.onnx"
        with FileLock(folder / f"{name}.lock"):
            if not path.exists():
                draft = path.with_suffix(".partial")
                export_small(name, draft)
                draft.rename(path)
        return path

    return export
