"""`trtship build`: ONNX -> TensorRT plan."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from trtship.cli.options import add_build, add_output

if TYPE_CHECKING:
    from trtship.cli.console import Console

HELP = "build a TensorRT plan from an fp32 ONNX graph, in the precision asked for"
EXAMPLE = "trtship build swin.onnx --precision fp16 --batch 1:8:32 -o swin.plan"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("graph", metavar="GRAPH", help="an .onnx file")
    add_build(parser)
    parser.add_argument("--log", metavar="FILE", help="where TensorRT's log goes (default: PATH.log)")
    add_output(parser, "the plan")


def run(arguments: argparse.Namespace, console: Console) -> int:
    from pathlib import Path

    from trtship.engine import plan_file_from_onnx
    from trtship.engine.profiles import parse_profiles
    from trtship.spec import Precision, ShapeRange, parse_sizes

    report = plan_file_from_onnx(
        Path(arguments.graph),
        Path(arguments.output),
        precision=Precision.parse(arguments.precision),
        batch=None if arguments.batch is None else ShapeRange.parse(arguments.batch),
        sizes=parse_sizes(arguments.size),
        profiles=parse_profiles(arguments.profiles),
        io_dtype=arguments.io_dtype,
        family=arguments.family,
        targets=tuple(arguments.target),
        log=None if arguments.log is None else Path(arguments.log),
        force=arguments.force,
        progress=console.progress,
    )
    console.result({"plan": arguments.output, "report": report})
    console.print(
        f"{arguments.output}: {report.plan_mib} MiB, {report.family} {report.version}, built in {report.seconds} s"
    )
    return 0
