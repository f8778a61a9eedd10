"""Fixtures for the tests of the command line."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_workplace import MESSAGE, MODEL, QUICK, Workplace, run_here
from filelock import FileLock

from in_time import in_time


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder for all processes of this test run, with the small model and the stage cache in it."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "cli"
    folder.mkdir(exist_ok=True)
    with FileLock(folder / "model.lock"):
        if not (folder / "model.py").exists():
            (folder / "model.py").write_text(MODEL)
    return folder


@pytest.fixture
def work(tmp_path: Path, shared: Path) -> Workplace:
    return Workplace(tmp_path, shared)


@pytest.fixture
def refuses_here(
    work: Workplace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """As `Workplace.refuses`, in this process."""
    monkeypatch.chdir(work.folder)

    def refuses(*arguments: str | Path) -> str:
        before = work.listing()
        with in_time(60):
            done = run_here(*arguments, capsys=capsys)
        assert (done.code, done.out) == (2, ""), done
        assert done.err.count("error: ") == 1, done.err
        message = MESSAGE.search(done.err)
        assert message is not None, done.err
        assert work.listing() == before
        return message[0]

    return refuses


@pytest.fixture(scope="session")
def deployed(shared: Path) -> Path:
    """A bundle of the small model, made once: to be read, not to be changed."""
    bundle = shared / "work" / "small.trtship"
    with FileLock(shared / "deployed.lock"):
        if not bundle.exists():
            place = Workplace(shared, shared)
            done = place.run("deploy", "model.py:small", *QUICK, "-o", bundle)
            assert done.code == 0, done.err
    return bundle


@pytest.fixture
def bundle(deployed: Path, work: Workplace) -> Path:
    """A copy of it that a test may spoil."""
    return Path(shutil.copytree(deployed, work / "small.trtship"))
