"""Progress on stderr: on a terminal a live bar with the current phase, and a table above it where there is one;
elsewhere one line a stage."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress

from rich.console import Console as Rich
from rich.console import RenderableType
from rich.progress import BarColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from trtship.cli.streams import plain, show_streams
from trtship.cli.tables import table
from trtship.progress import Progress
from trtship.terminal import shown


class _BarsBelow(Bars):
    """The bars, and above them whatever `above` is."""

    above: RenderableType | None = None

    def get_renderables(self) -> Iterable[RenderableType]:
        if self.above is not None:
            yield self.above
        yield from super().get_renderables()


class LiveProgress(Progress):
    """Stages may nest; the innermost is what `step` moves. Texts may be from outside: none is markup, and control
    characters are escapes."""

    def __init__(self) -> None:
        self._rich = Rich(file=plain(sys.stderr), highlight=False, soft_wrap=True)
        self._bars: _BarsBelow | None = None
        self._table: RenderableType | None = None
        self._stack: list[tuple[str, float, TaskID | None]] = []

    def started(self, name: str, detail: str) -> None:
        name, detail = shown(name), shown(detail)
        task: TaskID | None = None
        if self._rich.is_terminal:
            if self._bars is None:
                columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(bar_width=24))
                self._bars = _BarsBelow(
                    *columns,
                    TimeElapsedColumn(),
                    TextColumn("{task.fields[phase]}", style="dim", markup=False),
                    console=self._rich,
                    transient=True,
                )
                self._bars.above = self._table
                self._bars.start()
                show_streams()  # rich has put streams of its own in their place, and puts them back when it stops
            task = self._bars.add_task(f"{name} {detail}".strip(), total=None, phase="")
        else:
            self._line(f"{'  ' * len(self._stack)}{name} {detail}".rstrip() + " ...")
        self._stack.append((name, time.monotonic(), task))

    def finished(self, name: str, *, ok: bool) -> None:
        _, begun, task = self._stack.pop()
        if self._bars is not None and task is not None:
            self._bars.remove_task(task)
        if ok and (self._rich.is_terminal or time.monotonic() - begun > 1):
            self._line(f"{'  ' * len(self._stack)}{name}: {time.monotonic() - begun:.1f} s")
        if not self._stack:
            self.close()

    def note(self, text: str) -> None:
        self._line(f"{'  ' * len(self._stack)}- {text}")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        self._table = table(columns, rows) if rows else None
        if self._bars is not None:
            self._bars.above = self._table

    def step(self, done: float, text: str = "") -> None:
        if self._bars is not None and self._stack and (task := self._stack[-1][2]) is not None:
            self._bars.update(task, total=1.0, completed=min(max(done, 0.0), 1.0), phase=shown(text)[:60])

    def close(self) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def _line(self, text: str) -> None:
        text = shown(text).replace("\n", "\n" + "  " * (len(self._stack) + 1))  # no text can pose as another line
        if self._bars is not None:
            self._bars.console.print(text, markup=False)
        else:
            with suppress(OSError):  # nobody reads it any more, which is no reason to stop working
                print(text, file=sys.stderr, flush=True)
