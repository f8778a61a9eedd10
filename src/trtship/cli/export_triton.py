"""`trtship export-triton`: a bundle as a model of a Triton model repository."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from trtship.cli.options import add_trust, positive, trust

if TYPE_CHECKING:
    from trtship.cli.console import Console

HELP = "write a bundle into a Triton model repository: config.pbtxt, labels, and the plan or the ONNX graph"
EXAMPLE = "trtship export-triton swin.trtship models --name swin"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE")
    parser.add_argument("repository", metavar="REPO", help="the repository's folder; it is made where there is none")
    parser.add_argument("--name", metavar="NAME", help="the model's (default: BUNDLE without .trtship)")
    parser.add_argument(
        "--format",
        choices=("plan", "onnx"),
        help="what is served: the plan by the tensorrt backend, which loads plans of full TensorRT alone, or the ONNX "
        "graph by the onnxruntime backend (default: the plan where Triton can load it)",
    )
    parser.add_argument(
        "--instances",
        metavar="N",
        help="how many run side by side on each GPU (default: from the speeds in the bundle, 1 where there are none)",
    )
    parser.add_argument("--force", action="store_true", help="replace a model of that name, whole")
    add_trust(parser)


def run(arguments: argparse.Namespace, console: Console) -> int:
    from trtship.bundle.signature import open_trusted
    from trtship.scale import export_triton

    instances = None if arguments.instances is None else positive(arguments.instances, "--instances")
    bundle = open_trusted(arguments.bundle, trust(arguments), progress=console.progress)
    done = export_triton(
        bundle,
        arguments.repository,
        name=arguments.name,
        format=arguments.format,
        instances=instances,
        force=arguments.force,
        progress=console.progress,
    )
    for note in done.notes:
        console.progress.note(note)
    console.result(
        {
            "bundle": arguments.bundle,
            "model": str(done.model),
            "name": done.name,
            "format": done.format,
            "max_batch_size": done.max_batch_size,
            "preferred_batch_size": done.batching.preferred,
            "max_queue_delay_us": done.batching.delay_us,
            "instances": done.batching.instances,
            "files": done.files,
            "notes": done.notes,
        }
    )
    console.print(f"model: {done.model}, {done.format}")
    return 0
