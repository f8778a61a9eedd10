"""`trtship VERB ...`: finds the verb's file, parses, runs, and turns errors into messages and exit codes.

Each verb is a module here, `_` for `-`, with `HELP`, `EXAMPLE`, `add_arguments(parser)` and
`run(arguments, console) -> int`. Verbs import what they need when they run, so that `trtship --help` is quick.
"""

from __future__ import annotations

from trtship.cli import stop

stop.install_at_start()

# ruff: noqa: E402 - a signal may come while all of this is imported
import argparse
import difflib
import errno
import importlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from trtship import __version__
from trtship.cli.console import Console
from trtship.cli.limits import RAISE, check_limits, exhausted
from trtship.cli.streams import restore_streams, show_streams
from trtship.errors import DependencyError, MachineError, TrtshipError, UserError
from trtship.needs import keep_quiet, remedy

MAKE_AND_USE = ("deploy", "run", "inspect", "verify", "report", "debug", "bench", "pack", "unpack", "sign")
VERBS = (*MAKE_AND_USE, "export-triton", "export", "simplify", "optimize", "build", "doctor")


SURROUNDINGS = {
    errno.EACCES: "mend its permissions, or use another path",
    errno.EPERM: "mend its permissions, or use another path",
    errno.EROFS: "use a path on a disk that is not read-only",
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some of your quota",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f)",
    errno.ENAMETOOLONG: "use a shorter name",
    errno.ELOOP: "mend the symbolic links in it",
    errno.EIO: "check the disk",
}
"""What goes wrong around trtship, whatever it was doing, and what helps."""
LIMITS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN}
"""What the machine grants no more of."""


class _Parser(argparse.ArgumentParser):
    """argparse, with trtship's way of telling a mistake."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message}", why="it is written otherwise", do=f"see {self.prog} --help")

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """Raises UserError, which points to the verb's own help for options that it does not have."""
        found, extra = self.parse_known_args(argv)
        verb = next(one.choices[found.verb] for one in self._actions if one.dest == "verb" and one.choices)  # type: ignore[index]
        if extra:
            options = [option for action in verb._actions for option in action.option_strings]
            near = difflib.get_close_matches(extra[0].split("=")[0], options, n=1)
            raise UserError(
                f"{verb.prog} does not take {' '.join(extra)}",
                why="it has no such option, or too many arguments",
                do=(f"did you mean {near[0]}? " if near else "") + f"see {verb.prog} --help",
            )
        _check_values(verb, found)
        return found


def _parser() -> _Parser:
    parser = _Parser(
        prog="trtship",
        description="Ship PyTorch vision models on NVIDIA TensorRT: one command, one bundle, and the proof inside it.",
        epilog="exit codes: 0 done, 1 a gate failed, 2 a mistake in what was asked, 3 this machine lacks something, "
        "70 a bug in trtship, 130 cancelled",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"trtship {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name in VERBS:
        module: Any = importlib.import_module(f"trtship.cli.{name.replace('-', '_')}")
        verb = verbs.add_parser(
            name,
            help=module.HELP,
            description=module.HELP,
            epilog=f"example:\n  {module.EXAMPLE}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        module.add_arguments(verb)
        verb.add_argument("--json", action="store_true", help="print one JSON document on stdout, and nothing else")
        verb.add_argument("--quiet", action="store_true", help="no progress and no notes on stderr")
        verb.add_argument("--debug", action="store_true", help="show the traceback of an error")
        verb.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. Without `argv` it is the command of this very process, which ends with
    it: signals are ignored from then on, and a command that was cancelled ends the process itself."""
    ours, argv = argv is None, list(sys.argv[1:] if argv is None else argv)
    handlers = stop.install()
    show_streams()
    try:
        code = _main(argv)
    except KeyboardInterrupt:  # between the blocks that await it
        stop.reporting()
        code = _report(KeyboardInterrupt(), Console(json="--json" in argv), debug=False)
    if ours:
        return stop.leave(code)
    restore_streams()
    stop.restore(handlers)
    return code


def _main(argv: list[str]) -> int:
    keep_quiet()
    with Console(json="--json" in argv, quiet="--quiet" in argv) as console:
        try:
            arguments = _parser().parse(argv)
            check_limits()
            code = int(arguments.run(arguments, console))
            stop.reporting()
            return code
        except (Exception, KeyboardInterrupt) as error:
            stop.reporting()
            return _report(error, console, debug="--debug" in argv)


def _check_values(verb: argparse.ArgumentParser, found: argparse.Namespace) -> None:
    """Raises UserError for what no option means: an empty text (a path that came out empty in a script would be the
    current folder), an output whose name is not UTF-8, and a number beyond what the libraries take."""
    for action in verb._actions:
        given = getattr(found, action.dest, None)
        name = "/".join(action.option_strings) or str(action.metavar or action.dest)
        for value in given if isinstance(given, list | tuple) else [given]:
            if isinstance(value, str) and not value.strip():
                raise UserError(
                    f"{verb.prog}: {name} is empty", why="it was given as an empty text", do="name one, or leave it out"
                )
            if action.dest == "output" and isinstance(value, str) and not _is_utf8(value):
                raise UserError(
                    f"{verb.prog}: {name} {value!r} is not UTF-8",
                    why="ONNX, TensorRT and JSON take names in UTF-8 alone",
                    do="choose another name",
                )
            if isinstance(value, int) and abs(value) >= 2**63:
                raise UserError(
                    f"{verb.prog}: {name} is too large",
                    why="it takes whole numbers of 64 bits",
                    do="name a smaller one",
                )


def _is_utf8(text: str) -> bool:
    """Whether an argument of the command was UTF-8: Python keeps other bytes as halves of pairs."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and those that it came from."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__  # type: ignore[assignment]


def _report(error: BaseException, console: Console, *, debug: bool) -> int:
    if debug:
        import traceback

        console.end_progress()
        traceback.print_exception(error, file=sys.stderr)
    explained = _explain(error)
    try:
        console.failed(explained)
    except TrtshipError as unwritten:  # the error itself, as JSON, on a stdout that takes nothing
        print(f"error: {unwritten}", file=sys.stderr)
    return explained.exit_code


def _is_not_regular(error: OSError) -> bool:
    from trtship.files import NotRegularError

    return isinstance(error, NotRegularError)


def _explain(error: BaseException) -> TrtshipError:
    """The error as the user should read it."""
    if isinstance(error, KeyboardInterrupt) or stop.stops:
        # whatever it became on its way here: packages turn it into an ImportError, for one
        return stop.cancelled()
    if isinstance(error, TrtshipError):
        return error
    if isinstance(error, OSError) and _is_not_regular(error):
        return UserError(f"cannot read {error.filename}", why=error.strerror or str(error), do="name a regular file")
    if isinstance(error, OSError) and error.errno in LIMITS:
        return MachineError("this machine gave no more of what was asked for", why=str(error), do=RAISE)
    if isinstance(error, OSError) and error.errno in SURROUNDINGS:
        what = f"cannot use {error.filename}" if error.filename else "reading or writing failed"
        return UserError(what, why=error.strerror or str(error), do=SURROUNDINGS[error.errno])
    if isinstance(error, ModuleNotFoundError) and error.name and error.name.split(".")[0] != "trtship":
        return DependencyError(f"this Python lacks the package {error.name}", why=str(error), do=remedy(error.name))
    for one in _causes(error):
        if (limit := exhausted(one)) is not None:
            return limit
    return TrtshipError(
        f"trtship failed in a way it should not: {type(error).__name__}: {error}",
        why="this is a bug in trtship",
        do="run again with --debug and report the traceback, please",
    )
