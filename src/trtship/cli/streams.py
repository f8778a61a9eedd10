"""stdout and stderr of the command: streams that show control characters as escapes, whoever writes to them."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterable
from typing import Any, TextIO, cast

from trtship.terminal import shown


class ShownStream:
    """A text stream before another: other packages' warnings, logs and prints may quote text from outside.

    What a write begins with a carriage return for, a progress bar, is left to do so. All else is the stream's own.
    """

    def __init__(self, stream: TextIO) -> None:
        self.plain = stream

    def write(self, text: str) -> int:
        returns = "\r" if text.startswith("\r") and not text.startswith("\r\n") else ""
        self.plain.write(returns + shown(text[len(returns) :]))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.plain, name)


def plain(stream: TextIO) -> TextIO:
    """Return the stream behind: for those who have escaped what they write, and add styles of their own."""
    while isinstance(stream, ShownStream):
        stream = stream.plain
    return stream


def show_streams() -> None:
    """Put a `ShownStream` before stdout and stderr. Streams that the caller closed become /dev/null; letters that a
    stream cannot show are written as escapes."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            stream = open(os.devnull, "w")  # noqa: SIM115 - open until the process ends
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, cast(TextIO, ShownStream(plain(stream))))


def restore_streams() -> None:
    """Take away what `show_streams` put before them."""
    sys.stdout, sys.stderr = plain(sys.stdout), plain(sys.stderr)
