"""How long work tells that it is alive: stages, notes and fractions, to whoever listens.

The library calls a `Progress`; the command line passes one that draws on stderr. The base class is silent, so that
`progress=SILENT` is the default everywhere and no function needs to ask whether somebody listens; but for what makes a
product slower, which is a RuntimeWarning then (`trtship.load`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class Progress:
    """Override `started`, `finished`, `note`, `table` and `step` to show them; every method here does nothing."""

    @contextmanager
    def stage(self, name: str, detail: str = "") -> Iterator[None]:
        """Work that may take longer than a second."""
        self.started(name, detail)
        try:
            yield
        except BaseException:
            self.finished(name, ok=False)
            raise
        self.finished(name, ok=True)

    def started(self, name: str, detail: str) -> None:
        """A stage begins."""

    def finished(self, name: str, *, ok: bool) -> None:
        """A stage ends; `ok` is False when it raised."""

    def note(self, text: str) -> None:
        """One line that the user should read: a fallback taken, a choice made."""

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """What is known so far, to be kept in view until the next table; without rows it goes away."""

    def step(self, done: float, text: str = "") -> None:
        """How far the running stage is: `done` in 0..1, `text` its current phase."""


SILENT = Progress()
