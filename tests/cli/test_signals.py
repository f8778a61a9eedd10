"""A command that is told to end, once or five times, at any moment: exit code 130 and one message, or its result."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_workplace import QUICK, Workplace

SLOW = (
    "import sys, time\n"
    "from trtship.cli import main as entry, doctor\n"
    "def run(arguments, console):\n"
    "    try:\n"
    "        console.progress.note('begun')\n"
    "        {work}\n"
    "    finally:\n"
    "        time.sleep(0.5)\n"
    "        print('cleaned up', file=sys.stderr, flush=True)\n"
    "doctor.run = run\n"
    "sys.argv = ['trtship', 'doctor']\n"
    "sys.exit(entry.main())\n"
)
"""The real command with a verb whose work and clean-up take their time."""


def started(work: Workplace, *command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=work.folder,
        env=work.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors


@pytest.mark.parametrize("numbers", [[2], [2] * 5, [15, 2], [1] * 3], ids=str)
def test_signals_that_follow_the_first_leave_the_clean_up_alone(work: Workplace, numbers: list[int]) -> None:
    process = started(work, "-c", SLOW.format(work="time.sleep(60)"))
    assert process.stderr is not None
    assert "begun" in process.stderr.readline()
    for number in numbers:
        process.send_signal(number)
        time.sleep(0.05)
    code, errors = ended(process)
    assert (code, errors.count("cleaned up"), errors.count("error: ")) == (130, 1, 1), errors
    assert "error: cancelled" in errors
    assert "Traceback" not in errors


def test_a_signal_that_a_package_swallows_can_be_sent_again(work: Workplace) -> None:
    swallow = (
        "try: print('ready', file=sys.stderr, flush=True); time.sleep(60)\n"
        "        except KeyboardInterrupt: print('swallowed', file=sys.stderr)\n"
        "        time.sleep(60)"
    )
    process = started(work, "-c", SLOW.format(work=swallow))
    assert process.stderr is not None
    assert "begun" in process.stderr.readline()
    assert "ready" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    assert "swallowed" in process.stderr.readline()
    time.sleep(2.1)
    process.send_signal(signal.SIGINT)
    code, errors = ended(process)
    assert (code, errors.count("error: cancelled")) == (130, 1), errors


def test_threads_that_are_still_at_work_do_not_hold_up_the_end(work: Workplace) -> None:
    hang = "import threading; threading.Thread(target=time.sleep, args=(60,)).start(); time.sleep(60)"
    process = started(work, "-c", SLOW.format(work=hang))
    assert process.stderr is not None
    assert "begun" in process.stderr.readline()
    time.sleep(0.2)
    begun = time.monotonic()
    process.send_signal(signal.SIGTERM)
    code, errors = ended(process)
    assert (code, "Traceback" in errors) == (130, False), errors
    assert time.monotonic() - begun < 20


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_at_any_moment_of_a_short_command_it_is_130_or_its_result(
    work: Workplace, bundle: Path, number: signal.Signals
) -> None:
    """From its first line on to the end of the process. Before that it is Python that starts, which is not ours."""
    code = f"import sys; sys.argv = ['trtship', 'inspect', {str(bundle)!r}]\n"
    code += "from trtship.cli import stop; stop.install_at_start(); print('x', flush=True)\n"
    code += "from trtship.cli.main import main\nsys.exit(main())"
    begun = time.monotonic()
    process = started(work, "-c", code)
    process.communicate()
    whole = time.monotonic() - begun
    chance = random.Random(int(number))
    for _ in range(5):
        process = started(work, "-c", code)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(chance.random() * whole)
        for _ in range(chance.randint(1, 5)):
            process.send_signal(number)
        code_, errors = ended(process)
        assert code_ in (0, 130), (code_, errors)
        assert "Traceback" not in errors
        assert "Exception ignored" not in errors
        assert errors.count("error: cancelled") == (code_ == 130)


def test_ctrl_c_many_times_in_a_deploy_leaves_nothing(work: Workplace) -> None:
    work.cache = work.folder.parent / "cache"
    before = work.listing()
    process = started(work, "-m", "trtship", "deploy", "model.py:small", *QUICK, "-o", "a.trtship")
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("export with"):
            break
    for _ in range(5):
        process.send_signal(signal.SIGINT)
        time.sleep(0.02)
    code, errors = ended(process)
    assert (code, errors.count("error: "), "Traceback" in errors) == (130, 1, False), errors
    assert work.listing() == before
    assert work.left_over() == []
