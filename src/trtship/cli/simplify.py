"""`trtship simplify`: ONNX -> simpler ONNX, checked."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from trtship.cli.options import add_output

if TYPE_CHECKING:
    from trtship.cli.console import Console

HELP = "simplify an ONNX graph with onnxsim, and keep the original where a check fails"
EXAMPLE = "trtship simplify swin.onnx -o swin-simple.onnx"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("graph", metavar="GRAPH", help="an .onnx file")
    add_output(parser, "the simplified graph")


def run(arguments: argparse.Namespace, console: Console) -> int:
    from pathlib import Path

    from trtship.files import refuse_to_replace
    from trtship.passes import simplify

    refuse_to_replace(Path(arguments.output), force=arguments.force)
    with console.progress.stage("simplify", arguments.graph):
        report = simplify(Path(arguments.graph), Path(arguments.output), progress=console.progress)
    console.result({"graph": arguments.output, "report": report})
    console.print(
        f"{arguments.output}: kept the {report.kept} graph, {report.nodes_before} -> {report.nodes_after} nodes"
        + (f" ({report.why})" if report.why else "")
    )
    return 0
