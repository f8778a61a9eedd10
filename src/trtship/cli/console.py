"""What a verb may print: results on stdout, progress, notes and errors on stderr.

With `--json`, stdout gets one JSON document, and nothing else. rich is imported at the first print.
"""

from __future__ import annotations

import sys
from typing import Any

from trtship.errors import TrtshipError
from trtship.progress import SILENT, Progress


class Console:
    """`json`: one document on stdout and no tables; `quiet`: no progress and no notes."""

    def __init__(self, *, json: bool = False, quiet: bool = False) -> None:
        self.json, self.quiet = json, quiet
        self._progress: Progress | None = None
        self._said = False

    def print(self, renderable: Any) -> None:
        """Text or a rich renderable, on stdout; nothing with --json."""
        if self.json:
            return
        if isinstance(renderable, str):
            print(renderable)
            return
        from rich.console import Console as Rich

        Rich(soft_wrap=False, width=None if sys.stdout.isatty() else 120, highlight=False).print(renderable)

    def result(self, value: object) -> None:
        """The verb's one JSON document: a record, or plain dicts and lists. Nothing without --json."""
        if self.json and not self._said:
            from trtship.spec import to_json

            self._said = True
            sys.stdout.write(to_json(value).decode())
            sys.stdout.flush()

    def note(self, text: str) -> None:
        """One line on stderr."""
        self.progress.note(text)

    def failed(self, error: TrtshipError) -> None:
        """The error's message on stderr, and with --json `{"error": ...}` on stdout as well."""
        print(f"error: {error}", file=sys.stderr)
        self.result({"error": error.as_dict()})

    @property
    def progress(self) -> Progress:
        """What the library reports to: a live line on a terminal, plain lines elsewhere."""
        if self._progress is None:
            if self.quiet:
                self._progress = SILENT
            else:
                from trtship.cli.live import LiveProgress

                self._progress = LiveProgress()
        return self._progress

    def close(self) -> None:
        """Ends the live line, if there is one."""
        close = getattr(self._progress, "close", None)
        if close is not None:
            close()
        self._progress = None
