"""`trtship verify`: every check that this machine can run on a bundle."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from trtship.cli.options import add_inputs, add_trust, trust

if TYPE_CHECKING:
    from trtship.cli.console import Console

HELP = "check a bundle's graphs and plan against the original's outputs, and record the verdicts in it"
EXAMPLE = "trtship verify swin.trtship --eval val/"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE")
    parser.add_argument("--eval", metavar="DIR", help="the labelled pictures that the bundle was made with")
    add_inputs(
        parser,
        what="further inputs to run, as an .npz or .safetensors file, a folder of .npy files or of pictures; the "
        "answers of the bundle's fp32 graph stand for the original's; may be repeated",
    )
    parser.add_argument("--fp64", action="store_true", help="compare with the original's outputs in float64 as well")
    parser.add_argument(
        "--max-rel-l2",
        type=float,
        metavar="X",
        help="the largest relative L2 of a row that passes, in place of the derived bound",
    )
    parser.add_argument(
        "--min-cosine", type=float, metavar="X", help="the least cosine of a row with the original that passes"
    )
    parser.add_argument("--family", metavar="NAME", help="tensorrt or tensorrt_rtx (default: the bundle's)")
    parser.add_argument("--device", type=int, default=0, metavar="N", help="the GPU (default: 0)")
    parser.add_argument("--no-record", action="store_true", help="leave the bundle's manifest and report as they are")
    add_trust(parser)


def run(arguments: argparse.Namespace, console: Console) -> int:
    """0 when no gate failed, else 1; what could not run here is shown, and does not fail."""
    from trtship.bundle.signature import open_trusted
    from trtship.report import verify_bundle

    bundle = open_trusted(arguments.bundle, trust(arguments), progress=console.progress)
    verdicts = verify_bundle(
        bundle,
        eval_dir=arguments.eval,
        fp64=arguments.fp64,
        max_rel_l2=arguments.max_rel_l2,
        min_cosine=arguments.min_cosine,
        inputs=arguments.inputs,
        family=arguments.family,
        device=arguments.device,
        record=not arguments.no_record,
        progress=console.progress,
    )
    failed = sum(v.state == "failed" for v in verdicts)
    console.result({"bundle": arguments.bundle, "failed": failed, "verdicts": verdicts})
    if not console.json:
        from trtship.cli.tables import on_inputs, verdict_table

        console.print(verdict_table(verdicts))
        states = [v.state for v in verdicts]
        counts = ", ".join(f"{states.count(s)} {s}" for s in ("passed", "failed", "not run") if s in states)
        console.print(counts + ("" if arguments.inputs else on_inputs(bundle.manifest.tried)))
    return 1 if failed else 0
