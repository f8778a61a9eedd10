"""Options that several verbs share."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from trtship.errors import SpecError

if TYPE_CHECKING:
    from trtship.bundle.signature import Trust
    from trtship.sources import SourceOptions

LARGEST = 2**31 - 1
"""The largest whole number that an option takes."""
SOURCES = "timm/NAME, torchvision/NAME, transformers/PATH_OR_NAME, path/to/file.py:factory, or model.onnx"


def add_source(parser: argparse.ArgumentParser) -> None:
    """The source, its weights and its inputs."""
    parser.add_argument("source", metavar="SOURCE", help=SOURCES)
    weights = parser.add_argument_group("weights (one of them; a file.py:factory and an .onnx file need none)")
    weights.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="weights: a file of safetensors or torch.save, or the .index.json of one in shards; of several state "
        "dicts in a file, averaged ones (EMA) are used",
    )
    weights.add_argument("--pretrained", action="store_true", help="ask the source's own hub for its weights")
    weights.add_argument("--random-weights", action="store_true", help="random weights, to try things out")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the random weights (default: 0)")
    parser.add_argument(
        "--task",
        metavar="NAME",
        help="what a transformers model is for, such as image-classification, semantic-segmentation, object-detection, "
        "depth-estimation or feature-extraction (default: the class that its config.json names)",
    )
    parser.add_argument(
        "--model-arg",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an argument for the source's model constructor, such as num_classes=10; may be repeated",
    )
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="NAME=Bx3x80x80[:DTYPE]",
        help="an input that the source does not tell; a letter is a dynamic size; may be repeated",
    )


def source_options(arguments: argparse.Namespace) -> SourceOptions:
    """What `add_source` added, parsed. Raises SpecError."""
    from trtship.sources import SourceOptions, parse_model_arg
    from trtship.spec import TensorSpec

    return SourceOptions(
        source=arguments.source,
        checkpoint=arguments.checkpoint,
        pretrained=arguments.pretrained,
        random_weights=arguments.random_weights,
        seed=arguments.seed,
        model_args=tuple(parse_model_arg(text) for text in arguments.model_arg),
        inputs=tuple(TensorSpec.parse(text) for text in arguments.input),
        task=arguments.task,
    )


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Whose signature is demanded."""
    parser.add_argument(
        "--verify-key", metavar="FILE", help="the bundle must be signed by the one whose public key (PEM) this is"
    )
    parser.add_argument(
        "--verify-certificate",
        metavar="FILE",
        action="append",
        help="or with a certificate under this one (PEM); may be repeated",
    )


def trust(arguments: argparse.Namespace) -> Trust | None:
    """What `add_trust` added. Raises SpecError."""
    from trtship.bundle.signature import Trust

    return Trust.of(arguments.verify_key, arguments.verify_certificate)


def add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--opset", type=int, metavar="N", help="ONNX opset, 17 to 23 (default: 20)")
    parser.add_argument(
        "--exporter",
        metavar="NAME",
        help="dynamo or torchscript (default: dynamo, and torchscript where that fails)",
    )


def add_passes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--passes",
        default="all",
        metavar="NAMES",
        help="rewrites that make the graph faster: all, none, or such as windows-into-heads,patch-embedding; they run "
        "in an order of their own, each is proved, and one that fails is left out (default: all)",
    )


def add_build(parser: argparse.ArgumentParser, *, auto: bool = False) -> None:
    """`auto`: the precision may be searched for."""
    more = "; auto ships the fastest that passes every gate" if auto else ""
    low = ", fp8, int8" if auto else ""
    parser.add_argument(
        "--precision",
        default="fp16",
        metavar="NAME",
        help=f"fp32 (TF32 off), tf32, fp16, bf16{low}{more} (default: fp16)",
    )
    parser.add_argument(
        "--batch", metavar="MIN:OPT:MAX", help="batch sizes of the plan, or one fixed size (default: 1:8:32)"
    )
    parser.add_argument(
        "--profiles",
        metavar="N,N,N",
        help="batch sizes that get kernels of their own, which are faster than those for the whole range; none, or "
        "such as 1,8,32 (default: --batch's MIN, OPT and MAX)",
    )
    parser.add_argument(
        "--size",
        action="append",
        default=[],
        metavar="L=MIN:OPT:MAX",
        help="the range of another dynamic size of the inputs; may be repeated",
    )
    parser.add_argument(
        "--io-dtype", default="float32", metavar="DTYPE", help="of the plan's floating inputs and outputs"
    )
    parser.add_argument("--family", metavar="NAME", help="tensorrt or tensorrt_rtx (default: what is installed)")
    parser.add_argument(
        "--target",
        action="append",
        default=[],
        metavar="CC",
        help="tensorrt_rtx: a compute capability to build for, such as 8.9, or 'current'; may be repeated "
        "(default: all that it supports)",
    )


def add_inputs(parser: argparse.ArgumentParser, *, ranges: bool = False, what: str = "") -> None:
    """Real inputs; with `ranges`, what stands in for them. `what` says what a verb does with them."""
    group = parser.add_argument_group("real inputs") if ranges else parser
    group.add_argument(
        "--inputs",
        action="append",
        metavar="FILE",
        help=what
        or "inputs like those that the model will see, to check and to calibrate on: an .npz or .safetensors file with "
        "an array [rows, ...] for each input, a folder of INPUT.npy files or of such folders, or a folder of pictures "
        "where the source tells its preprocessing; sizes may differ between files; may be repeated (default: values "
        "are invented that fit the graph, and the result says so)",
    )
    if ranges:
        group.add_argument(
            "--input-range",
            action="append",
            default=[],
            metavar="NAME=LOW:HIGH",
            help="the least and the largest value of an input, for want of real ones, such as t=0:999; may be repeated "
            "(default: what the graph tells: ids over the whole table that they index, bytes 0 to 255, masks, lengths)",
        )


def add_output(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("-o", "--output", required=True, metavar="PATH", help=f"where {what} goes")
    parser.add_argument("--force", action="store_true", help="replace what is there")


def add_search(parser: argparse.ArgumentParser) -> None:
    """The gates, and what `--precision auto` needs besides."""
    gates = parser.add_argument_group("gates (all that are given must be met)")
    gates.add_argument("--eval", metavar="DIR", help="labelled pictures, one folder a class: measure top-1 on them")
    gates.add_argument(
        "--max-drop", type=float, default=0.5, metavar="POINTS", help="of top-1 that --eval may lose (default: 0.5)"
    )
    gates.add_argument(
        "--max-rel-l2", type=float, metavar="X", help="largest relative L2 error of an output, in its worst row"
    )
    gates.add_argument("--min-cosine", type=float, metavar="X", help="smallest cosine of an output with the original's")
    search = parser.add_argument_group("--precision auto (needs --eval, --max-rel-l2 or --min-cosine)")
    search.add_argument(
        "--candidates",
        metavar="NAMES",
        help="what to try: fp32, tf32, fp16, bf16, fp8, int8, and mixed, which keeps some nodes in a higher precision "
        "where a plain one fails its gates (default: all)",
    )
    search.add_argument(
        "--time-budget",
        metavar="TIME",
        help="try nothing new after so long, such as 20m or 1h, time what passed, and ship the best of it; the same "
        "command goes on from there (default: no limit)",
    )


def add_quantization(parser: argparse.ArgumentParser) -> None:
    """What fp8 and int8 need."""
    group = parser.add_argument_group("fp8 and int8")
    group.add_argument(
        "--calib",
        metavar="DIR",
        help="some hundred pictures like those that the model will see, to calibrate on, or for a model without "
        "preprocessing INPUT.npy files (default: the pictures of --eval)",
    )
    group.add_argument(
        "--calib-method",
        metavar="NAME",
        default="percentile",
        help="percentile (99.999 %%), entropy or min-max (default: percentile)",
    )
    group.add_argument(
        "--quantize",
        metavar="SCOPE",
        default="fused",
        help="fused: the products that TensorRT needs no further kernels for; all; or weights: the weights of all of "
        "them and no activations, which makes a smaller plan, not a faster one (default: fused)",
    )


def positive(text: str, option: str) -> int:
    """Return a whole number of at least 1 and at most `LARGEST`. Raises SpecError."""
    if not text.isdecimal() or len(text) > len(str(LARGEST)) or not 1 <= int(text) <= LARGEST:
        raise SpecError(
            f"{option} {text[:40]!r} is not a number of things",
            why=f"it takes a whole number from 1 to {LARGEST}",
            do="name one",
        )
    return int(text)
