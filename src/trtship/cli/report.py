"""`trtship report`: the bundle's page, written anew, elsewhere, or shown."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from trtship.cli.console import Console

HELP = "write a bundle's report.html anew from its evidence, or a copy elsewhere, and show it"
EXAMPLE = "trtship report swin.trtship --open"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE")
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="write the page there, and leave the bundle as it is (default: in it)"
    )
    parser.add_argument("--force", action="store_true", help="replace FILE if it exists")
    parser.add_argument("--open", action="store_true", help="show the page in the browser")


def run(arguments: argparse.Namespace, console: Console) -> int:
    from pathlib import Path

    from trtship.bundle import Bundle
    from trtship.bundle.names import REPORT
    from trtship.files import refuse_to_replace
    from trtship.report import report_file, write_report

    target = None if arguments.output is None else Path(arguments.output)
    if target is not None:
        refuse_to_replace(target, force=arguments.force)
    bundle = Bundle.open(arguments.bundle, progress=console.progress)
    if target is None:
        write_report(bundle)
        target = bundle.folder / REPORT
    else:
        report_file(bundle, target)
    shown = arguments.open and _show(target.absolute(), console)
    states = [verdict.state for verdict in bundle.manifest.verdicts]
    found = {state.replace(" ", "_"): states.count(state) for state in ("passed", "failed", "not run")}
    console.result({"bundle": arguments.bundle, "report": str(target), "shown": shown, **found})
    console.print(f"report: {target}")
    return 0


def _show(page: Path, console: Console) -> bool:
    """Whether a browser took it."""
    import webbrowser

    shown = webbrowser.open(page.as_uri())
    if not shown:
        console.progress.note(f"no browser was found here: open {page} in yours")
    return shown
