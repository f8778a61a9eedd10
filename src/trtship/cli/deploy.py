"""`trtship deploy`: the main job."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from trtship.cli.options import (
    add_build,
    add_export,
    add_inputs,
    add_output,
    add_passes,
    add_quantization,
    add_search,
    add_source,
)

if TYPE_CHECKING:
    from trtship.cli.console import Console

HELP = "make a verified TensorRT bundle from a PyTorch model"
EXAMPLE = (
    "trtship deploy timm/swin_tiny_patch4_window7_224 --checkpoint swin.safetensors --precision fp16 \\\n"
    "      --batch 1:8:32 --eval val/ --labels imagenet.txt -o swin.trtship"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_source(parser)
    add_export(parser)
    add_passes(parser)
    add_build(parser, auto=True)
    add_search(parser)
    add_quantization(parser)
    add_inputs(parser, ranges=True)
    parser.add_argument("--labels", metavar="FILE", help="the classes' names, one a line")
    parser.add_argument("--why", action="store_true", help="tell of each stage what changed since its last run")
    parser.add_argument(
        "--keep-failed",
        metavar="FOLDER",
        help="where a bundle that fails a gate goes, for trtship debug (default: nowhere)",
    )
    add_output(parser, "the bundle")


def run(arguments: argparse.Namespace, console: Console) -> int:
    """0 when the bundle is there and no gate failed."""
    from trtship.cli.options import source_options
    from trtship.deployment import DeployOptions, run_deploy

    result = run_deploy(
        DeployOptions.parse(
            source_options(arguments),
            precision=arguments.precision,
            batch=arguments.batch,
            sizes=arguments.size,
            profiles=arguments.profiles,
            io_dtype=arguments.io_dtype,
            opset=arguments.opset,
            exporter=arguments.exporter,
            passes=arguments.passes,
            family=arguments.family,
            targets=arguments.target,
            eval_dir=arguments.eval,
            labels=arguments.labels,
            max_drop=arguments.max_drop,
            max_rel_l2=arguments.max_rel_l2,
            min_cosine=arguments.min_cosine,
            calib_dir=arguments.calib,
            calib_method=arguments.calib_method,
            quantize=arguments.quantize,
            candidates=arguments.candidates,
            time_budget=arguments.time_budget,
            input_files=arguments.inputs or (),
            input_ranges=arguments.input_range,
        ),
        arguments.output,
        force=arguments.force,
        keep_failed=arguments.keep_failed,
        progress=console.progress,
    )
    console.result(result)
    if console.json:
        return 0
    from trtship.cli.candidates import show_choice
    from trtship.cli.tables import on_inputs, table, verdict_table

    if arguments.why:
        rows = [
            (s.name, "remembered" if s.cached else "ran", f"{s.seconds:.1f}", s.did, "; ".join(s.changed) or "nothing")
            for s in result.stages
        ]
        console.print(table(("stage", "", "seconds", "did", "changed since its last run"), rows))
        if result.changed:
            console.print("changed since the bundle that stood there: " + "; ".join(result.changed))
    for stage in result.stages:
        if stage.did and not arguments.why:
            console.print(f"{stage.name}: {stage.did}")
    if result.choice is not None:
        show_choice(result.choice, console)
    console.print(verdict_table(result.verdicts))
    inputs = on_inputs(result.inputs)
    if result.up_to_date:
        console.print(f"up to date, nothing was done: {result.bundle}{inputs}")
    else:
        console.print(f"bundle: {result.bundle}  ({result.seconds:.1f} s){inputs}")
    return 0
