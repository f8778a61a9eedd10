"""Fixtures that several rooms' tests share."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from clock import Clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """What `time.monotonic` goes by in this test."""
    made = Clock()
    monkeypatch.setattr(time, "monotonic", made.monotonic)
    return made


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


@pytest.fixture(scope="session")
def digits_graph(for_all: Path) -> Path:
    """The digits Swin's optimized fp32 graph, made once a test run. Not to be written to."""
    from digits import make_graph

    folder = for_all / "digits"
    folder.mkdir(exist_ok=True)
    with FileLock(folder / "lock"):
        graph = folder / "digits.onnx"
        return graph if graph.exists() else make_graph(folder)


@pytest.fixture(scope="session")
def for_all(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder that all workers of this test run share."""
    base = tmp_path_factory.getbasetemp()
    return base if worker_id == "master" else base.parent


@pytest.fixture(scope="session", autouse=True)
def stage_cache(for_all: Path) -> Path:
    """The stage cache of this test run: nobody's own, and nothing from an earlier run is taken for granted."""
    os.environ["TRTSHIP_CACHE"] = str(for_all / "cache")
    return for_all / "cache"


@pytest.fixture(scope="session")
def deployed(for_all: Path, stage_cache: Path) -> Callable[[str, str], Path]:
    """`deployed("swin", "fp16")`: a bundle of `deployed.MAKERS`, made once a test run. Not to be written to."""
    from deployed import MAKERS

    folder = for_all / "deployed"
    folder.mkdir(exist_ok=True)

    def deploy(name: str, precision: str) -> Path:
        with FileLock(folder / "lock"):
            target = folder / f"{name}-{precision}.trtship"
            return target if target.exists() else MAKERS[name](folder, precision)

    return deploy


@pytest.fixture(scope="session")
def torch_free(request: pytest.FixtureRequest) -> Path:
    """A Python with `pip install trtship[rtx]` of this checkout and nothing else; kept between test runs."""
    from bare import torch_free

    assert request.config.cache is not None
    return torch_free(request.config.cache.mkdir("environments"))
