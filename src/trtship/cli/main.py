"""`trtship VERB ...`: finds the verb's file, parses, runs, and turns errors into messages and exit codes.

Each verb is a module here with `HELP`, `EXAMPLE`, `add_arguments(parser)` and `run(arguments, console) -> int`.
Verbs import what they need when they run, so that `trtship --help` is quick.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any, NoReturn

from trtship import __version__
from trtship.cli.console import Console
from trtship.errors import Cancelled, TrtshipError, UserError

VERBS = ("deploy", "run", "inspect", "verify", "export", "simplify", "build", "doctor")


class _Parser(argparse.ArgumentParser):
    """argparse, with trtship's way of telling a mistake."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message}", do=f"see {self.prog} --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="trtship",
        description="Ship PyTorch vision models on NVIDIA TensorRT: one command, one bundle, and the proof inside it.",
        epilog="exit codes: 0 done, 1 a gate failed, 2 a mistake in what was asked, 3 this machine lacks something, "
        "70 a bug in trtship",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"trtship {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name in VERBS:
        module: Any = importlib.import_module(f"trtship.cli.{name}")
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
    """Run one command; returns its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    console = Console(json="--json" in argv, quiet="--quiet" in argv)
    debug = "--debug" in argv
    signal.signal(signal.SIGTERM, _terminated)
    try:
        arguments = _parser().parse_args(argv)
        code = int(arguments.run(arguments, console))
        sys.stdout.flush()
        return code
    except TrtshipError as error:
        return _report(error, console, debug)
    except KeyboardInterrupt:
        return _report(Cancelled("cancelled", why="Ctrl-C", do="nothing was left behind"), console, debug)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        bug = TrtshipError(
            f"trtship failed in a way it should not: {type(error).__name__}: {error}",
            do="run again with --debug and report the traceback, please",
        )
        return _report(bug, console, debug, cause=error)
    finally:
        console.close()


def _report(error: TrtshipError, console: Console, debug: bool, cause: BaseException | None = None) -> int:
    console.close()
    if debug:
        import traceback

        traceback.print_exception(cause or error, file=sys.stderr)
    console.failed(error)
    return error.exit_code


def _terminated(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
