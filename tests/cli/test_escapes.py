"""Text from files and names that others chose: no control character of it reaches the terminal, by any channel."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from cli_workplace import QUICK, Workplace, run_here

from graphs import model_of
from trtship.cli.console import Console
from trtship.cli.live import LiveProgress
from trtship.cli.streams import restore_streams, show_streams
from trtship.cli.tables import table
from trtship.errors import GateError, SpecError
from trtship.terminal import shown, shown_json

EVIL = (
    "\x1b]0;title\x07", "\x1b[2J\x1b[H", "\x1b]52;c;ZWNobw==\x07", "\x9b31m", "\x9d0;t\x9c",
    "\x00\x08\x7f\r", "\u202efdp.exe",
    "\u2066x\u2069", "\u2028line\u2029", "[red]markup[/red]", "[link=https://example.com]x[/link]", "\ufeff\u200b",
    "\U000e0041", "\x85",
)  # fmt: skip
ALL = "".join(EVIL)
FORBIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\u200b\U000e0000-\U000e007f]"
)
OURS = re.compile(r"\x1b\[[0-9;]*m|\x1b\[\?25[lh]|\x1b\[[0-9]*[AK]|\x1b\[2K|\r")
"""What rich itself writes to a terminal: colours, the cursor hidden and shown, lines of the bars cleared."""


def clean(text: str) -> bool:
    return FORBIDDEN.search(text) is None


@pytest.mark.parametrize("evil", EVIL)
def test_what_is_shown_has_no_control_characters_and_nothing_is_lost(evil: str) -> None:
    assert clean(shown(f"a{evil}b"))
    assert shown(shown(evil)) == shown(evil)
    assert json.loads(shown_json(json.dumps(evil, ensure_ascii=False))) == evil
    assert clean(shown_json(json.dumps(evil, ensure_ascii=False)))


def test_what_people_write_stays_as_it_is() -> None:
    for text in ("käse\tグラフ\n", "👩\u200d🔬", "می\u200cخواهم", "a\\x1b", ""):
        assert shown(text) == text
    assert shown("a\r\nb") == "a\nb"
    assert shown("caf\udce9") == "caf\\xe9"


def test_an_error_is_shown_in_its_own_lines() -> None:
    error = SpecError(f"what {ALL}", why="why\nerror: forged", do=ALL)
    assert clean(str(error))
    assert [line[:7] for line in str(error).splitlines()[1:]] == ["  why: ", "       ", "  do:  "]
    assert error.what == f"what {ALL}"
    assert GateError(ALL, evidence=[ALL]).as_dict()["evidence"] == [ALL]


def on_a_terminal(code: str, env: dict[str, str], cwd: Path) -> str:
    """What a terminal gets from Python code."""
    main, other = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", code], stdin=other, stdout=other, stderr=other, env=env, cwd=cwd)
    os.close(other)
    found = b""
    while True:
        try:
            part = os.read(main, 65536)
        except OSError:  # Linux's way of saying that nobody has it open any more
            break
        if not part:
            break
        found += part
    assert process.wait() == 0, found
    os.close(main)
    return found.decode()


CHANNELS = f"""
import logging, sys, warnings, traceback
sys.stdout.isatty()
from trtship.cli.console import Console
from trtship.cli.streams import show_streams
from trtship.cli.tables import table
from trtship.errors import SpecError
evil = {ALL!r}
show_streams()
with Console() as console:
    console.print(evil)
    console.print(table([evil, "b"], [[evil, evil]], title=evil))
    progress = console.progress
    with progress.stage("stage " + evil, evil):
        progress.table([evil], [[evil]])
        progress.note(evil)
        progress.step(0.5, evil)
        warnings.warn(evil)
        logging.getLogger("x").warning(evil)
        print(evil)
        print(evil, file=sys.stderr)
        with progress.stage(evil):
            pass
    warnings.warn(evil + "2")
    logging.getLogger("y").warning(evil)
    print(evil, file=sys.stderr)
    console.failed(SpecError(evil, why=evil, do=evil))
    try:
        raise ValueError(evil)
    except ValueError as error:
        traceback.print_exception(error, file=sys.stderr)
"""


def test_no_channel_lets_them_through_to_a_terminal(work: Workplace) -> None:
    found = on_a_terminal(
        CHANNELS, work.environment(TERM="xterm-256color", COLUMNS="200", PYTHONWARNINGS="always"), work.folder
    )
    assert clean(OURS.sub("", found)), FORBIDDEN.findall(OURS.sub("", found))
    assert found.count("[red]markup[/red]") >= 12
    assert "\x1b]" not in found
    assert "\x1b[31m" not in found
    assert "\x1b[2J" not in found


def test_nor_to_a_file(work: Workplace) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHANNELS], env=work.environment(), cwd=work.folder, capture_output=True, check=True
    )
    for stream in (done.stdout, done.stderr):
        assert clean(stream.decode()), FORBIDDEN.findall(stream.decode())


def test_streams_are_the_callers_again_afterwards() -> None:
    before = sys.stdout, sys.stderr
    show_streams()
    show_streams()
    assert sys.stderr is not before[1]
    restore_streams()
    assert (sys.stdout, sys.stderr) == before


def test_a_progress_bar_may_return_to_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    show_streams()
    try:
        sys.stderr.write("\r 10%")
        sys.stderr.write("a\rb\x1b[2J")
    finally:
        restore_streams()
    assert capsys.readouterr().err == "\r 10%a\\x0db\\x1b[2J"


def test_live_progress_and_console_by_themselves(capsys: pytest.CaptureFixture[str]) -> None:
    console, progress = Console(), LiveProgress()
    with progress.stage(ALL, ALL):
        progress.note(f"{ALL}\nerror: forged")
    console.print(ALL)
    console.print(table([ALL], [[ALL]], title=ALL))
    found = capsys.readouterr()
    assert clean(found.out)
    assert clean(found.err)
    assert "\nerror" not in found.err


def test_the_names_of_files_keys_nodes_and_labels_are_shown_escaped(
    work: Workplace, bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command itself, once for each source of strings."""
    from safetensors.numpy import save_file

    monkeypatch.chdir(work.folder)
    evil = "\x1b[2J\x1b]0;t\x07\x9b31m\u202e[red]x"
    (work / f"{evil}.onnx").write_bytes(b"no graph")
    save_file({f"head.{evil}": np.zeros(3, np.float32)}, work / "a.safetensors")
    model = model_of("(float[B, 4] x) => (float[B, 4] y) { y = Det(x) }")
    model.graph.node[0].name = model.graph.node[0].output[0] = model.graph.output[0].name = evil
    onnx.save(model, work / "a.onnx")
    (work / "labels.txt").write_text(f"{evil}\nb\n")
    (work / "raises.py").write_text(f"def make():\n    raise ValueError({evil!r})\n")
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["name"] = evil
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    for command in (
        ("inspect", evil),
        ("export", f"{evil}.onnx", "-o", "b.onnx"),
        ("deploy", "model.py:small", *QUICK, "--checkpoint", "a.safetensors", "-o", "b"),
        ("deploy", "model.py:small", *QUICK, "--labels", "labels.txt", "-o", "b"),
        ("deploy", "raises.py:make", "-o", "b"),
        ("inspect", bundle),
        ("run", bundle, evil),
        ("deploy", "model.py:small", f"--{evil}"),
        (evil,),
    ):
        for more in ((), ("--json", "--debug"))[: 1 if "model.py:small" in command else 2]:
            done = run_here(*command, *more, capsys=capsys)
            assert clean(done.out), (command, more, done.out)
            assert clean(done.err), (command, more, done.err)
            if more and done.out:
                json.loads(done.out)
