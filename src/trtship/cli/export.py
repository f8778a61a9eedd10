"""`trtship export`: a model as a checked ONNX graph."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from trtship.cli.options import add_export, add_inputs, add_output, add_source

if TYPE_CHECKING:
    from trtship.cli.console import Console

HELP = "export a PyTorch model to ONNX, checked against PyTorch at several sizes"
EXAMPLE = "trtship export timm/swin_tiny_patch4_window7_224 --checkpoint swin.safetensors -o swin.onnx"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_source(parser)
    add_export(parser)
    parser.add_argument(
        "--size", action="append", default=[], metavar="L=MIN:OPT:MAX", help="the range of a dynamic size, to check in"
    )
    add_inputs(parser, ranges=True)
    add_output(parser, "the ONNX graph")


def run(arguments: argparse.Namespace, console: Console) -> int:
    from pathlib import Path

    from trtship.cli.options import source_options
    from trtship.export import export_source
    from trtship.input_files import source_of
    from trtship.input_ranges import parse_input_ranges
    from trtship.passes.input_domains import domains_of_graph
    from trtship.passes.thaw_unknown import thaw
    from trtship.spec import parse_sizes

    report = export_source(
        source_options(arguments),
        Path(arguments.output),
        ranges=parse_sizes(arguments.size),
        opset=arguments.opset,
        exporter=arguments.exporter,
        thaw=thaw,
        domains_of=domains_of_graph,
        inputs=source_of(arguments.inputs),
        input_ranges=parse_input_ranges(arguments.input_range),
        force=arguments.force,
        progress=console.progress,
    )
    if report.rules:
        console.progress.note("nothing enforces the rules in the ONNX file itself: keep to them where you run it")
    console.result({"graph": arguments.output, "report": report})
    if not console.json:
        from trtship.cli.tables import on_inputs, table

        rows = [
            (m.output, " ".join(f"{k}={n}" for k, n in m.sizes.items()), f"{m.rel_l2:.2e}", f"{report.bound:.2e}")
            for m in report.checks
        ]
        console.print(table(("output", "at", "relative L2", "bound"), rows))
        console.print(f"{arguments.output}: {report.exporter} exporter, opset {report.opset}{on_inputs(report.inputs)}")
    return 0
