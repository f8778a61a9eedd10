"""A text about a fault, ready to be pasted into a bug report."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from trtship.passes.quantize_places import name_of
from trtship.verify.locate import Located
from trtship.verify.locate_compare import Deviation
from trtship.verify.locate_reproduction import RECORD, REFERENCE, SUSPECT, Reproduction

if TYPE_CHECKING:
    import onnx_ir

PLAN_COMMAND = (
    "polygraphy run {folder}/minimal.onnx --trt --strongly-typed --onnxrt --data-loader-script {folder}/{loader}"
)
LOADER = "load_inputs.py"
LOADER_TEXT = '''"""Inputs of minimal.onnx, for polygraphy's --data-loader-script."""

import json
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
NAMES = {names}


def load_data():
    files = json.loads((HERE / "{record}").read_text())["inputs"]
    yield {{name: np.load(HERE / files[name]) for name in NAMES}}
'''


def bug_report(
    located: Located,
    made: Reproduction,
    *,
    runtime: str,
    case: str,
    versions: Mapping[str, str],
    folder: str,
    nodes: Sequence[onnx_ir.Node],
) -> str:
    """Markdown: what is wrong where, on what, how to see it, and the few nodes themselves."""
    subject = "a TensorRT plan" if made.subject == "plan" else f"an ONNX graph ({made.subject})"
    lines = [
        f"# {located.operator} `{located.node}` gives wrong results in {subject}",
        "",
        f"The tensor `{located.tensor}` is the first that differs from the reference: {in_words(located.deviation)}.",
        f"Everything that its nodes read is right. Seen with {runtime}, on {case}.",
        "",
        "## To reproduce",
        "",
        f"`{SUSPECT}` has the nodes below, `{REFERENCE}` what they should compute, in fp32; `{RECORD}` says which of "
        "the `.npy` files is which input.",
        "",
        "    trtship debug --reproduce " + folder,
    ]
    if made.subject == "plan":
        lines.append("    " + PLAN_COMMAND.format(folder=folder, loader=LOADER))
    small = in_words(made.found) if made.found is not None else "not seen: it takes the whole graph"
    lines += ["", f"By itself: {small}.", "", "## Nodes", "", "```", *map(_line, nodes), "```", "", "## Versions", ""]
    lines += [f"- {name} {version}" for name, version in sorted(versions.items())]
    lines += [f"- Python {platform.python_version()}, {platform.system()} {platform.machine()}", ""]
    return "\n".join(lines)


def loader_script(names: Sequence[str]) -> str:
    """A Python file that gives polygraphy the inputs of these names."""
    return LOADER_TEXT.format(names=list(names), record=RECORD)


def in_words(deviation: Deviation) -> str:
    """`relative L2 0.2, where rounding explains 0.004`."""
    if deviation.state == "not finite":
        return "NaN or Inf, where the reference has numbers"
    if deviation.state == "does not run":
        return "it does not run"
    return f"relative L2 {deviation.error:.3g}, where rounding explains {deviation.floor:.3g}"


def _line(node: onnx_ir.Node) -> str:
    inputs = ", ".join("" if value is None else f"{value.name}{_kind(value)}" for value in node.inputs)
    outputs = ", ".join(f"{value.name}{_kind(value)}" for value in node.outputs)
    attributes = ", ".join(f"{name}={one.value}" for name, one in sorted(node.attributes.items()))
    return f"{outputs} = {node.op_type}<{attributes}>({inputs})  # {name_of(node)}"


def _kind(value: onnx_ir.Value) -> str:
    kind = "" if value.dtype is None else value.dtype.name.lower()
    return f": {kind}{value.shape or ''}" if kind else ""
