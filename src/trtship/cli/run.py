"""`trtship run`: a bundle on pictures."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from trtship.cli.options import add_trust, positive

if TYPE_CHECKING:
    from trtship.cli.console import Console

HELP = "run a bundle on pictures: the likeliest classes with their probabilities"
EXAMPLE = "trtship run swin.trtship cat.jpg dog.jpg"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE")
    parser.add_argument("pictures", metavar="PICTURE", nargs="+")
    parser.add_argument("--top", default="5", metavar="N", help="classes to show (default: 5)")
    parser.add_argument("--runtime", default="auto", choices=("auto", "tensorrt", "onnxruntime"), help="what runs it")
    parser.add_argument("--device", type=int, default=0, metavar="N", help="the GPU (default: 0)")
    add_trust(parser)


def run(arguments: argparse.Namespace, console: Console) -> int:
    from trtship.bundle import load

    top = positive(arguments.top, "--top")
    with load(
        arguments.bundle,
        runtime=arguments.runtime,
        device=arguments.device,
        verify_key=arguments.verify_key,
        verify_certificates=arguments.verify_certificate,
        progress=console.progress,
    ) as session:
        found = session.classify(arguments.pictures, top=top)
        runtime = session.runtime
    pairs = list(zip(arguments.pictures, found, strict=True))
    console.result({"runtime": runtime, "pictures": [{"path": path, "top": guesses} for path, guesses in pairs]})
    if console.json:
        return 0
    from trtship.cli.tables import table

    rows = [
        (path if place == 0 else "", guess.label, f"{guess.probability:.4f}")
        for path, guesses in pairs
        for place, guess in enumerate(guesses)
    ]
    console.print(table(("picture", "class", "probability"), rows))
    console.print(f"ran on {runtime}")
    return 0
