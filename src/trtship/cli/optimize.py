"""`trtship optimize`: ONNX -> faster ONNX, pass by pass, each one proved."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from trtship.cli.options import add_output, add_passes, positive

if TYPE_CHECKING:
    from trtship.cli.console import Console

HELP = "rewrite an ONNX graph into forms that TensorRT runs faster, and keep what proves to be the same"
EXAMPLE = "trtship optimize swin-simple.onnx -o swin-fast.onnx"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("graph", metavar="GRAPH", help="an .onnx file, best one from trtship simplify")
    add_passes(parser)
    parser.add_argument(
        "--traced",
        metavar="N",
        help="the batch that the graph was exported with, to repair one that is frozen at it (default: find out, and "
        "refuse where it cannot be known)",
    )
    add_output(parser, "the optimized graph")


def run(arguments: argparse.Namespace, console: Console) -> int:
    from pathlib import Path

    from trtship.cli.tables import table
    from trtship.files import refuse_to_replace
    from trtship.passes.optimization import optimize
    from trtship.passes.registry import find_passes, parse_passes

    refuse_to_replace(Path(arguments.output), force=arguments.force)
    report = optimize(
        Path(arguments.graph),
        Path(arguments.output),
        passes=find_passes(parse_passes(arguments.passes)),
        traced=None if arguments.traced is None else positive(arguments.traced, "--traced"),
        progress=console.progress,
    )
    console.result({"graph": arguments.output, "report": report})
    console.print(
        table(
            ("pass", "matches", "rewritten", "nodes", "largest error", "bound", "kept"),
            [
                (
                    one.name,
                    str(one.matches),
                    str(one.rewritten),
                    f"{one.nodes_before} -> {one.nodes_after}",
                    "" if one.error is None else f"{one.error:.2e}",
                    "" if one.bound is None else f"{one.bound:.2e}",
                    "yes" if one.kept else f"{'rolled back' if one.rolled_back else 'no'}: {one.why}",
                )
                for one in report.passes
            ],
        )
    )
    misses = [(one.name, miss.node, miss.reason) for one in report.passes for miss in one.near_misses]
    if misses:
        console.print(table(("pass", "near miss", "reason"), misses))
    console.print(f"{arguments.output}: {report.summary}; {report.nodes_before} -> {report.nodes_after} nodes")
    return 0
