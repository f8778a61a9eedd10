"""Lines of the model's own code: which one is running, and what it does."""

from __future__ import annotations

import ast
import linecache
import site
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from types import FrameType, TracebackType

import msgspec

LOGGERS = frozenset(("logging", "logger", "log", "_logger", "LOGGER", "LOG"))
LOGGED = frozenset(("debug", "info", "warning", "warning_once", "error", "critical"))
"""Usual names of loggers, and their methods that write a line."""


class Line(msgspec.Struct, frozen=True):
    """A line of Python: its file, its number, and the function that it is in."""

    file: str
    number: int
    function: str = ""

    @property
    def code(self) -> str:
        """The text of the line, without indentation; empty where the file cannot be read."""
        return linecache.getline(self.file, self.number).strip()

    @property
    def where(self) -> str:
        """`net.py:17`, the file relative to where Python finds it."""
        return f"{_short(self.file)}:{self.number}"

    def __str__(self) -> str:
        place = f"{self.where} in {self.function}" if self.function else self.where
        return f"{place}: `{self.code}`" if self.code else place

    @property
    def only_checks(self) -> bool:
        """Whether its outcome can only end the run, or be told: an `assert`, or an `if` that only raises or warns."""
        match self._statement:
            case ast.Assert():
                return True
            case ast.If(body=body, orelse=[]):
                return all(isinstance(statement, ast.Raise) or _only_tells(statement) for statement in body)
        return False

    @property
    def decides(self) -> bool:
        """Whether it chooses what runs next, or how often; so does a line that cannot be read."""
        statement = self._statement
        if statement is None or isinstance(statement, ast.If | ast.While | ast.For | ast.Match):
            return True
        return any(
            isinstance(node, ast.IfExp | ast.BoolOp | ast.Compare | ast.comprehension) for node in ast.walk(statement)
        )

    @property
    def _statement(self) -> ast.stmt | None:
        """The innermost statement that the line belongs to."""
        return max(
            (s for s in _statements(self.file) if s.lineno <= self.number <= (s.end_lineno or s.lineno)),
            key=lambda s: s.lineno,
            default=None,
        )


def _only_tells(statement: ast.stmt) -> bool:
    """Whether it is a call of `print`, `warnings.warn` or a logger's method."""
    match statement:
        case ast.Expr(value=ast.Call(func=ast.Name(id="print"))):
            return True
        case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Name(id=owner), attr=name))):
            return owner == "warnings" if name == "warn" else name in LOGGED and owner in LOGGERS
    return False


@lru_cache(maxsize=16)
def _statements(file: str) -> tuple[ast.stmt, ...]:
    try:
        tree = ast.parse("".join(linecache.getlines(file)))
    except (SyntaxError, ValueError, RecursionError):
        return ()
    return tuple(node for node in ast.walk(tree) if isinstance(node, ast.stmt))


def _short(file: str) -> str:
    path = Path(file)
    roots = [Path(p) for p in (*site.getsitepackages(), *sys.path, str(Path.cwd())) if p not in ("", "/")]
    inside = [path.relative_to(root) for root in roots if path.is_relative_to(root)]
    return str(min(inside, key=lambda p: len(p.parts))) if inside else path.name


@lru_cache(maxsize=1)
def _machinery() -> tuple[str, ...]:
    """Where the code of PyTorch, of Python and of trtship's exports is: not the model's."""
    import torch

    return (
        str(Path(torch.__file__).parent) + "/",
        str(Path(__file__).parent) + "/",
        str(Path(__file__).parents[1] / "sources" / "outputs.py"),
        "<",
    )


def is_models(file: str) -> bool:
    """Return whether a file's code is the model's, or a library's that the model is made of, and not PyTorch's."""
    pythons = file.startswith(sysconfig.get_path("stdlib")) and not file.startswith(sysconfig.get_path("purelib"))
    return not pythons and not file.startswith(_machinery())


def running_line() -> Line | None:
    """Return the line of the model's code that is running: the innermost one of this thread's stack."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if is_models(frame.f_code.co_filename):
            return Line(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_qualname)
        frame = frame.f_back
    return None


def failing_line(error: BaseException) -> Line | None:
    """Return the innermost line of the model's code in an exception's traceback, or in that of its causes."""
    found: Line | None = None
    for one in _causes(error):
        for trace in _steps(one.__traceback__):
            code = trace.tb_frame.f_code
            if is_models(code.co_filename):
                found = Line(code.co_filename, trace.tb_lineno, code.co_qualname)
    return found


def _causes(error: BaseException) -> Iterable[BaseException]:
    one: BaseException | None = error
    while one is not None:
        yield one
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)


def _steps(trace: TracebackType | None) -> Iterator[TracebackType]:
    while trace is not None:
        yield trace
        trace = trace.tb_next
