"""`trtship debug`: the node at which a bundle's graph or plan leaves the original."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from trtship.cli.options import add_inputs

if TYPE_CHECKING:
    from trtship.bundle.debug import DebugReport
    from trtship.cli.console import Console

HELP = "find the first tensor at which a bundle's graph or plan leaves the original, and reproduce the fault in little"
EXAMPLE = "trtship debug swin.trtship -o fault"

ABOVE, BELOW = 6, 4
"""Tensors to show: right ones above the first that is wrong, and wrong ones from there. --json has all."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", nargs="?")
    parser.add_argument(
        "-o", "--output", metavar="FOLDER", help="a new folder for the smallest graph that shows the fault, its inputs "
        "and a text for a bug report"
    )  # fmt: skip
    parser.add_argument("--reproduce", metavar="FOLDER", help="run what -o wrote, in place of a bundle")
    parser.add_argument(
        "--reference", metavar="FILE", help="an fp32 .onnx of the same model to hold the bundle against, such as a new "
        "export (default: the bundle's own fp32 graph)"
    )  # fmt: skip
    add_inputs(
        parser,
        what="further inputs to look at, before the bundle's own: an .npz or .safetensors file, a folder of .npy files "
        "or of pictures; may be repeated",
    )
    parser.add_argument("--width", default="8", metavar="N", help="tensors that one run keeps, at most (default: 8)")
    parser.add_argument("--memory", default="256", metavar="MIB", help="and what they may take (default: 256)")
    parser.add_argument("--family", metavar="NAME", help="tensorrt or tensorrt_rtx (default: the bundle's)")
    parser.add_argument("--device", type=int, default=0, metavar="N", help="the GPU (default: 0)")


def run(arguments: argparse.Namespace, console: Console) -> int:
    """0 when nothing is wrong, else 1; what could not run here is shown, and is not wrong."""
    from trtship.bundle.debug import debug_bundle
    from trtship.cli.options import positive
    from trtship.errors import SpecError

    if (arguments.bundle is None) == (arguments.reproduce is None):
        raise SpecError(
            "trtship debug takes a BUNDLE, or --reproduce FOLDER", why="it got both, or neither", do="name one of them"
        )
    width, memory = positive(arguments.width, "--width"), positive(arguments.memory, "--memory")
    if arguments.reproduce is not None:
        return _reproduce(arguments, console)
    report = debug_bundle(
        arguments.bundle,
        reference=arguments.reference,
        output=arguments.output,
        inputs=arguments.inputs,
        family=arguments.family,
        device=arguments.device,
        width=width,
        memory=memory * 2**20,
        progress=console.progress,
    )
    console.result(report)
    if not console.json:
        _show(report, console)
    return 1 if report.wrong is not None else 0


def _reproduce(arguments: argparse.Namespace, console: Console) -> int:
    from trtship.bundle.debug import reproduce
    from trtship.verify.locate_report import in_words

    found = reproduce(arguments.reproduce, device=arguments.device, progress=console.progress)
    console.result({"folder": arguments.reproduce, "found": found})
    console.print("nothing is off" if found is None else f"{found.tensor}: {in_words(found)}")
    return 0 if found is None else 1


def _show(report: DebugReport, console: Console) -> None:
    from trtship.cli.tables import table
    from trtship.verify.locate_report import in_words

    rows = [(f.subject, f.state, f.case or f.reason, f.runtime) for f in report.findings]
    console.print(table(("subject", "it is", "on, or why", "where"), rows))
    wrong = report.wrong
    if wrong is None:
        console.print("nothing is off")
        return
    if wrong.located is None:
        console.print(wrong.reason)
        return
    one = wrong.located
    place = one.looked_at.index(one.deviation)
    near = one.looked_at[max(0, place - ABOVE) : place + BELOW]
    looked = [
        (d.tensor, d.operator, d.state, *("" if v is None else f"{v:.2e}" for v in (d.error, d.floor))) for d in near
    ]
    title = f"{len(one.looked_at)} of {one.comparable} tensors looked at, in {one.runs} runs; against {report.against}"
    console.print(table(("tensor", "operator", "it is", "relative L2", "rounding explains"), looked, title=title))
    console.print(f"{one.operator} {one.node} is to blame: {one.tensor}: {in_words(one.deviation)}")
    if len(one.nodes) > 1:
        console.print(f"between that tensor and the right ones above it: {', '.join(one.nodes)}")
    if report.folder is not None:
        console.print(f"the fault by itself: trtship debug --reproduce {report.folder}")
