"""Run an exporter in a forked child: whatever it does to the module or to its process stays there.

A module often cannot be pickled, so the child is a fork, which has the module already. It never returns into its
parent's stack. PyTorch runs on one thread there, as in the workers of its DataLoader: OpenMP's threads do not come
along into a fork, and waiting for them would never end.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import pickle
import re
import resource
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from trtship.errors import GraphError, TrtshipError, error_named
from trtship.export.lines import Line, is_models
from trtship.processes import how_it_ended, last_words
from trtship.session.module_copy import copy_module

T = TypeVar("T")

LOG, CRASH = "log.txt", "crash.txt"
HELD_BACK = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM}
"""Signals that wait while the process forks: a KeyboardInterrupt in the child would run in the parent's code."""
PR_SET_PDEATHSIG = 1
"""Of Linux's prctl, include/uapi/linux/prctl.h: which signal a child gets when its parent ends."""


class ExporterDied(GraphError):
    """The exporter's process ended without an answer."""


class ChildTraceback(Exception):
    """The traceback of an error in the child, as text: the cause of the error that is raised here."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def run_isolated(function: Callable[[Any], T], module: Any, *, folder: Path, what: str) -> T:
    """Return `function(module)`, run in a child of this process on the child's own copy of `module`.

    Where the system cannot fork, or the module is on a GPU, it runs here on a deep copy.

    Args:
        function: What to run. Its result must be picklable.
        module: The module, which stays as it is.
        folder: An existing folder for the child's temporary files and its output; the caller removes it.
        what: Who runs, for messages: "the dynamo exporter".

    Raises:
        ExporterDied: the child crashed, or was killed.
        TrtshipError: what `function` raised; an OSError is raised as itself.
    """
    if not sys.platform.startswith("linux") or any(p.device.type != "cpu" for p in module.parameters()):
        found: T = function(copy_module(module))
        return found
    log = folder / LOG
    parent = os.getpid()
    reading, writing = os.pipe()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HELD_BACK)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python and JAX warn of threads, which the child does not use
            pid = os.fork()
        if pid == 0:
            _child(function, module, writing, log, parent)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    answer: T = _answer(pid, reading, writing, log, what)
    return answer


def _answer(pid: int, reading: int, writing: int, log: Path, what: str) -> Any:
    """What the child sends, once it has ended; it is killed where the wait is interrupted."""
    status: int | None = None
    try:
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            data = pipe.read()
        status = os.waitpid(pid, 0)[1]
    finally:
        if status is None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code or not data:
        raise _died(code, log.parent, what)
    kind, value = pickle.loads(data)
    if kind == "value":
        return value
    name, arguments, text = value
    if kind == "os":
        raise OSError(*arguments) from ChildTraceback(text)
    error = error_named(name)(arguments[0], why=arguments[1], do=arguments[2])
    raise error from ChildTraceback(text)


def _died(code: int, folder: Path, what: str) -> ExporterDied:
    line, words = _crashed_line(folder / CRASH), last_words(folder / LOG)
    why = f"its process {how_it_ended(code)}"
    why += f", at {line}" if line else ""
    why += f"; its last words: {words}" if words else ""
    do = "try the other --exporter; look for compiled code (custom operators, ctypes) that the model calls"
    if code == -signal.SIGKILL:
        why += "; the system does so when memory runs out"
        do = "free some memory, or export on a machine with more; try the other --exporter"
    return ExporterDied(f"{what} crashed on this model", why=why, do=do)


def _crashed_line(file: Path) -> Line | None:
    """The line of the model's code that was running, from what faulthandler wrote."""
    with suppress(OSError):
        for name, number, function in re.findall(r'File "(.+)", line (\d+) in (\S+)', file.read_text(errors="replace")):
            if is_models(name):
                return Line(name, int(number), function)
    return None


def _child(function: Callable[[Any], Any], module: Any, writing: int, log: Path, parent: int) -> NoReturn:
    code = 1
    try:
        if not _settle(log, parent):
            os._exit(code)
        answer = _answered(function, module)
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(answer)
        code = 0
    except BaseException:
        with suppress(BaseException):
            traceback.print_exc()
            sys.stderr.flush()
    finally:
        os._exit(code)


def _settle(log: Path, parent: int) -> bool:
    """Make this child one that ends with its parent, prints into `log`, leaves no files, and uses one thread.

    Return False where the parent is gone, or was cancelled and has removed the folder of `log` already.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # Ctrl-C is the parent's, which then kills this one
        signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_BACK)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return False
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")  # where memory runs out, this process goes, not its parent
    tempfile.tempdir = str(log.parent)
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    except FileNotFoundError:
        return False
    os.dup2(output, 1)
    os.dup2(output, 2)
    faulthandler.enable((log.parent / CRASH).open("w"), all_threads=False)
    sys.stdout = sys.stderr = open(output, "w", errors="backslashreplace")  # noqa: SIM115 - a lock may be held on the old
    import torch

    torch.set_num_threads(1)
    return True


def _answered(function: Callable[[Any], Any], module: Any) -> bytes:
    try:
        return pickle.dumps(("value", function(module)))
    except TrtshipError as error:
        name, arguments = type(error).__name__, (error.what, error.why, error.do)
        return pickle.dumps(("error", (name, arguments, _text(error))))
    except OSError as error:
        facts = (error.errno, error.strerror, error.filename)
        return pickle.dumps(("os", ("OSError", facts, _text(error))))


def _text(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))
