"""TensorRT's complaints, translated into cause and remedy.

A row a known complaint: text that its log contains, the cause in plain words, what to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trtship.errors import BuildError, GraphError, TrtshipError
from trtship.family import Family, ParseProblem

CAUSES: tuple[tuple[str, str, str], ...] = (
    (
        "No space left on device",
        "the disk for temporary files is full",
        "free some space, or point TMPDIR at another disk",
    ),
    (
        "CUDA driver version is insufficient",
        "the NVIDIA driver is missing, or older than this TensorRT needs",
        "trtship doctor shows the driver that fits",
    ),
    (
        "OutOfMemory",
        "the machine, or its GPU, ran out of memory while building",
        "close other programs, or build with a smaller maximum batch",
    ),
    (
        "out of memory",
        "the machine, or its GPU, ran out of memory while building",
        "close other programs, or build with a smaller maximum batch",
    ),
    (
        "Could not find any implementation",
        "no kernel fits a layer; most often too little memory was free to try them (NVIDIA/TensorRT issue 4258)",
        "free GPU memory and build again, or lower the maximum batch",
    ),
    (
        "does not support this compute capability",
        "this TensorRT has no kernels for this GPU",
        "trtship doctor shows the version that fits; or use the other --family",
    ),
    (
        "kMIN",
        "an optimization profile does not fit the graph's shapes",
        "check --batch and --size against the graph's inputs (trtship inspect shows them)",
    ),
    (
        "profile",
        "an optimization profile does not fit the graph's shapes",
        "check --batch and --size against the graph's inputs (trtship inspect shows them)",
    ),
)


def explain_parse(problems: Sequence[ParseProblem], graph: Path, family: Family) -> TrtshipError:
    """GraphError that names the op and its node for what the parser refused."""
    unsupported = [p for p in problems if "UNSUPPORTED_NODE" in p.code or "is not supported" in p.text]
    chosen = unsupported or list(problems)
    named = "; ".join(f"{p.operator or 'graph'} at node {p.node or '(unnamed)'}" for p in chosen[:10])
    if unsupported:
        return GraphError(
            f"{family} lacks an operator of {graph.name}: {named}",
            why=_words(unsupported) or "its ONNX parser has no translation for it",
            do="write that part of the model with other operators, or export with another --opset or --exporter",
        )
    return GraphError(
        f"{family} cannot read {graph.name}: {named}",
        why=_words(problems) or "it gave no reason",
        do="try another --exporter or --opset, or simplify the graph first",
    )


def _words(problems: Sequence[ParseProblem]) -> str:
    """What the parser said, where it said more than the name of a failed assertion."""
    lines = [p.text.strip().splitlines()[0] for p in problems[:3] if p.text.strip()]
    return "; ".join(line for line in lines if " " in line)


def explain_build(log: Sequence[str], family: Family) -> BuildError:
    """BuildError with the cause that the log's error lines point to, and TensorRT's own words."""
    errors = [line[4:] for line in log if line.startswith(("[E]", "[F]"))]
    words = errors[0][:400] if errors else "it gave no reason"
    for text, cause, remedy in CAUSES:
        if any(text in line for line in errors):
            return BuildError(f"{family} could not build the plan: {cause}", why=words, do=remedy)
    return BuildError(
        f"{family} could not build the plan",
        why=words,
        do="run again with --debug, and report it with the log if it looks like a bug",
    )
