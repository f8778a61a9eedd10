"""Ctrl-C, SIGTERM and SIGKILL, at the stages of a real deploy: a whole bundle or none."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from cli_workplace import QUICK, Workplace
from PIL import Image


@pytest.fixture
def pictures(work: Workplace) -> Workplace:
    """With so many pictures to evaluate on that the last stages take their time."""
    noise = np.random.default_rng(0).integers(0, 256, (256, 256), np.uint8)
    for name in ("zero", "one", "two"):
        (work / "val" / name).mkdir(parents=True)
        Image.fromarray(noise).save(work / "val" / name / "0.png")
        for index in range(1, 100):
            os.link(work / "val" / name / "0.png", work / "val" / name / f"{index}.png")
    return work


def deploy(*more: str) -> list[str]:
    return ["deploy", "model.py:small", *QUICK, "--eval", "val", "-o", "a.trtship", *more]


def interrupted(work: Workplace, stage: str, number: signal.Signals, *more: str) -> tuple[int, str]:
    """Exit code and stderr of a deploy that gets the signal as soon as it says that it is at `stage`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "trtship", *deploy(*more)],
        cwd=work.folder,
        env=work.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    watchdog = threading.Timer(120, process.kill)
    watchdog.start()
    with process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if line.startswith(stage):
                if number is signal.SIGINT:  # a terminal sends it to every process in the foreground
                    os.killpg(process.pid, number)
                else:
                    process.send_signal(number)
                break
        lines.append(process.stderr.read())
    watchdog.cancel()
    return process.returncode, "".join(lines)


def check_nothing_is_left(work: Workplace, before: dict[str, str]) -> None:
    assert work.listing() == before
    assert work.left_over() == []
    assert partial(work.cache) == []


@pytest.mark.parametrize("stage", ["load model.py", "export with", "simplify"])
def test_ctrl_c_leaves_nothing_behind(pictures: Workplace, stage: str) -> None:
    pictures.cache = pictures.folder.parent / "cache"  # of its own, so that these stages run
    before = pictures.listing()
    code, errors = interrupted(pictures, stage, signal.SIGINT)
    assert code == 130, errors
    assert "error: cancelled\n  why: Ctrl-C\n" in errors
    assert "Traceback" not in errors
    check_nothing_is_left(pictures, before)


@pytest.mark.parametrize(("stage", "batch"), [("build the plan", "1:3:5"), ("verify graph", "1:4:7")])
def test_ctrl_c_in_the_last_stages_leaves_nothing_behind(pictures: Workplace, stage: str, batch: str) -> None:
    before = pictures.listing()
    code, errors = interrupted(pictures, stage, signal.SIGINT, "--batch", batch)
    assert code == 130, errors
    assert "cancelled" in errors.partition("error: ")[2]
    assert "Traceback" not in errors
    check_nothing_is_left(pictures, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_being_told_to_end_leaves_nothing_behind_either(pictures: Workplace, number: signal.Signals) -> None:
    before = pictures.listing()
    code, errors = interrupted(pictures, "verify graph", number, "--max-drop", "7")
    assert code == 130, errors
    assert f"error: cancelled\n  why: {number.name}\n" in errors
    check_nothing_is_left(pictures, before)


def test_a_killed_deploy_leaves_no_bundle_and_the_next_one_sweeps_up(pictures: Workplace) -> None:
    pictures.cache = pictures.folder.parent / "cache"
    code, errors = interrupted(pictures, "verify graph", signal.SIGKILL)
    assert code == -signal.SIGKILL, errors
    assert not (pictures / "a.trtship").exists()
    assert partial(pictures.folder)
    assert partial(pictures.cache)
    done = pictures.run(*deploy())
    assert done.code == 0, done.err
    assert pictures.run("inspect", "a.trtship").code == 0
    assert partial(pictures.folder) == partial(pictures.cache) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_replacement_that_is_interrupted_leaves_the_old_bundle(
    pictures: Workplace, bundle: Path, number: signal.Signals
) -> None:
    bundle.rename(pictures / "a.trtship")
    before = old_bundle(pictures)
    code, errors = interrupted(pictures, "verify graph", number, "--force", "--max-drop", "8")
    assert code in (130, -signal.SIGKILL), errors
    assert old_bundle(pictures) == before
    assert pictures.run("inspect", "a.trtship").code == 0


def old_bundle(work: Workplace) -> dict[str, str]:
    return {name: content for name, content in work.listing().items() if name.startswith("a.trtship")}


def partial(folder: Path) -> list[str]:
    """The drafts that nobody holds. (Other workers of this test run deploy into the same cache.)"""
    return [path.name for path in folder.rglob("*.partial") if is_abandoned(path)]


def is_abandoned(draft: Path) -> bool:
    """A living process holds a lock on its draft."""
    try:
        lock = os.open(draft, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    return True
