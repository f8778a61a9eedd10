"""TensorRT's log. TensorRT keeps the first logger that a process gives it, so there is one a family for good."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

LAYERS = "LayerType: "
"""What only the list of a plan's layers says, one VERBOSE message at the end of a build."""
_loggers: dict[str, Any] = {}
_lock = threading.Lock()


def logger_of(module: Any) -> Any:
    """The family's one logger; `recording()` and `recording_layers()` collect what it says."""
    with _lock:
        if module.__name__ not in _loggers:
            _loggers[module.__name__] = _make(module)
        return _loggers[module.__name__]


def _make(module: Any) -> Any:
    kept = {
        int(module.ILogger.INTERNAL_ERROR): "F",
        int(module.ILogger.ERROR): "E",
        int(module.ILogger.WARNING): "W",
        int(module.ILogger.INFO): "I",
    }

    class Recorder(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.sinks: tuple[list[str], ...] = ()
            self.layer_sinks: tuple[list[str], ...] = ()

        def log(self, severity: Any, message: str) -> None:
            letter = kept.get(int(severity))
            if letter is not None:
                for sink in self.sinks:
                    sink.append(f"[{letter}] {message}")
            elif LAYERS in message:
                for sink in self.layer_sinks:
                    sink.append(message)

    return Recorder()


@contextmanager
def recording(module: Any) -> Iterator[list[str]]:
    """A list that fills with log lines, `"[E] ..."` and the like, while the block runs."""
    lines: list[str] = []
    with _added(logger_of(module), "sinks", lines):
        yield lines


@contextmanager
def recording_layers(module: Any) -> Iterator[list[str]]:
    """A list that fills with the texts in which TensorRT lists the layers of plans, while the block runs.

    They are VERBOSE, and no part of `recording()`.
    """
    texts: list[str] = []
    with _added(logger_of(module), "layer_sinks", texts):
        yield texts


@contextmanager
def _added(logger: Any, sinks: str, sink: list[str]) -> Iterator[None]:
    """`sink` among the logger's while the block runs. Whoever logs meanwhile, in any thread, reads a tuple that is
    exchanged as a whole."""
    with _lock:
        setattr(logger, sinks, (*getattr(logger, sinks), sink))
    try:
        yield
    finally:
        with _lock:
            setattr(logger, sinks, tuple(one for one in getattr(logger, sinks) if one is not sink))
