"""`trtship pack`: a bundle as one file."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trtship.cli.console import Console

HELP = "write a bundle to one file, a zip"
EXAMPLE = "trtship pack swin.trtship"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE")
    parser.add_argument("-o", "--output", metavar="FILE", help="the archive (default: BUNDLE.zip)")
    parser.add_argument("--force", action="store_true", help="replace FILE if it exists")


def run(arguments: argparse.Namespace, console: Console) -> int:
    from trtship.bundle import Bundle
    from trtship.bundle.archive import pack_bundle

    bundle = Bundle.open(arguments.bundle, progress=console.progress)
    path = pack_bundle(bundle, arguments.output, force=arguments.force, progress=console.progress)
    mib = round(path.stat().st_size / 2**20, 2)
    console.result({"bundle": arguments.bundle, "archive": str(path), "mib": mib})
    console.print(f"archive: {path}, {mib} MiB")
    return 0
