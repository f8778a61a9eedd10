"""What a verb may print: results on stdout, progress, notes and errors on stderr.

With `--json`, stdout gets one JSON document, and nothing else. rich is imported at the first print. All text is
written by way of `shown` or `shown_json`: control characters from outside never reach the terminal.
"""

from __future__ import annotations

import io
import os
import sys
from typing import Any, Self

from trtship.cli.streams import plain
from trtship.errors import OutputError, TrtshipError
from trtship.progress import Progress
from trtship.terminal import shown, shown_json


class Console:
    """`json`: one document on stdout and no tables; `quiet`: no progress and no notes.

    As a context manager with `json`, it keeps stdout to itself: whatever else this process prints there, from Python
    or native code, goes to stderr meanwhile.
    """

    def __init__(self, *, json: bool = False, quiet: bool = False) -> None:
        self.json, self.quiet = json, quiet
        self._progress: Progress | None = None
        self._said = False
        self._kept: int | None = None
        self._gone = False

    def __enter__(self) -> Self:
        stream = plain(sys.stdout)
        if self.json and stream is sys.__stdout__ and stream is not None:
            stream.flush()
            self._kept = os.dup(1)
            os.dup2(2, 1)
        return self

    def __exit__(self, *_: object) -> None:
        self.end_progress()
        if self._kept is not None:
            sys.stdout.flush()
            os.dup2(self._kept, 1)
            os.close(self._kept)
            self._kept = None

    def print(self, renderable: Any) -> None:
        """Text or a rich renderable, on stdout; nothing with --json. Raises OutputError where stdout takes nothing."""
        if self.json:
            return
        if isinstance(renderable, str):
            self._write(shown(renderable) + "\n")
            return
        from rich.console import Console as Rich
        from rich.segment import Segment, Segments

        # not straight to stdout: where its reader has gone, rich ends the process with exit code 1
        page, live = _Page(sys.stdout.encoding), sys.stdout.isatty()
        rich = Rich(file=page, force_terminal=live, width=None if live else 120, highlight=False)
        # the escape sequences that rich itself writes are of the segments' styles, not of their text
        segments = [Segment(shown(one.text), one.style, one.control) for one in rich.render(renderable)]
        rich.print(Segments(segments), end="")
        self._write(page.getvalue())

    def result(self, value: object) -> None:
        """The verb's one JSON document: a record, or plain dicts and lists. Nothing without --json."""
        if self.json and not self._said:
            from trtship.spec import to_json

            self._said = True
            self._write(shown_json(to_json(value).decode()))

    def _write(self, text: str) -> None:
        """On stdout: a reader that has gone (`| head`) is no error, a full disk is."""
        if self._gone:
            return
        try:
            if self._kept is None:
                stdout = plain(sys.stdout)  # it is shown already, and styled where that is a terminal
                stdout.write(text)
                stdout.flush()
            else:
                with os.fdopen(os.dup(self._kept), "w", encoding="utf-8") as kept:
                    kept.write(text)
        except OSError as error:
            self._gone = True
            if self._kept is None:  # what is left in the buffer would fail again when Python exits
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            if not isinstance(error, BrokenPipeError):
                raise OutputError(
                    "cannot write the result to stdout",
                    why=error.strerror or str(error),
                    do="free some space, or send it elsewhere",
                ) from error

    def failed(self, error: TrtshipError) -> None:
        """The error's message on stderr, and with --json `{"error": ...}` on stdout as well."""
        self.end_progress()
        print(f"error: {error}", file=sys.stderr)
        self.result({"error": error.as_dict()})

    @property
    def progress(self) -> Progress:
        """What the library reports to: a live line on a terminal, plain lines elsewhere."""
        if self._progress is None:
            if self.quiet:
                self._progress = Progress()  # not SILENT: who asked for quiet wants no warnings in place of notes
            else:
                from trtship.cli.live import LiveProgress

                self._progress = LiveProgress()
        return self._progress

    def end_progress(self) -> None:
        """Ends the live line, if there is one."""
        close = getattr(self._progress, "close", None)
        if close is not None:
            close()
        self._progress = None


class _Page(io.StringIO):
    """Text for a stream of this encoding: rich draws its boxes with what that has."""

    def __init__(self, encoding: str) -> None:
        super().__init__()
        self._encoding = encoding

    @property
    def encoding(self) -> str:  # type: ignore[override]  # a plain attribute in typeshed
        return self._encoding
