"""A table of what is known so far, above the live bars, and nothing of it where there is no terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console as Rich

from trtship.cli.live import LiveProgress

COLUMNS, ROWS = ("candidate", "outcome"), [("fp32", "passed"), ("fp16 [2 kept]", "failed")]


@pytest.fixture
def screen() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def live(screen: io.StringIO) -> LiveProgress:
    progress = LiveProgress()
    progress._rich = Rich(file=screen, force_terminal=True, width=100)
    return progress


def test_the_table_stands_above_the_bar_while_a_stage_runs(live: LiveProgress, screen: io.StringIO) -> None:
    with live.stage("build the plan", "bf16"):
        live.table(COLUMNS, ROWS)
        assert live._bars is not None
        live._bars.refresh()
        shown = screen.getvalue()
    assert "fp16 [2 kept]" in shown
    assert shown.index("fp32") < shown.rindex("build the plan bf16")


def test_it_stays_for_the_stages_that_follow_until_it_is_taken_away(live: LiveProgress, screen: io.StringIO) -> None:
    live.table(COLUMNS, ROWS)
    with live.stage("one"):
        assert "fp16 [2 kept]" in screen.getvalue()
    live.table(COLUMNS, [])
    screen.truncate(0)
    with live.stage("two"):
        assert "fp16" not in screen.getvalue()


def test_without_a_terminal_there_is_no_table(capsys: pytest.CaptureFixture[str]) -> None:
    progress = LiveProgress()
    with progress.stage("one"):
        progress.table(COLUMNS, ROWS)
    assert "fp16" not in capsys.readouterr().err
