"""`trtship unpack`: the bundle in an archive, as a folder again."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from trtship.cli.options import add_trust, trust

if TYPE_CHECKING:
    from trtship.cli.console import Console

HELP = "write the bundle in an archive to a folder, every name, size and hash checked"
EXAMPLE = "trtship unpack swin.trtship.zip"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("archive", metavar="ARCHIVE")
    parser.add_argument("-o", "--output", metavar="BUNDLE", help="the folder (default: ARCHIVE without .zip)")
    parser.add_argument("--force", action="store_true", help="replace a bundle that stands there")
    parser.add_argument(
        "--max-mib", type=int, metavar="N", help="the most that its files may take, unpacked (default: 16384)"
    )
    add_trust(parser)


def run(arguments: argparse.Namespace, console: Console) -> int:
    from trtship.bundle.archive import unpack_bundle
    from trtship.bundle.archive_entries import MAX_MIB

    bundle = unpack_bundle(
        arguments.archive,
        arguments.output,
        force=arguments.force,
        max_mib=MAX_MIB if arguments.max_mib is None else arguments.max_mib,
        trust=trust(arguments),
        progress=console.progress,
    )
    console.result({"archive": arguments.archive, "bundle": str(bundle.folder), "files": len(bundle.manifest.files)})
    console.print(f"bundle: {bundle.folder}")
    return 0
