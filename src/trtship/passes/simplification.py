"""Simplify a graph with onnxsim, and keep the result only if it is the same function."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from msgspec.structs import replace

from trtship.errors import GraphError
from trtship.files import temporary_folder
from trtship.graphs.rounding import precision_of, rounding_bound
from trtship.graphs.storage import EXTERNAL_OVER, load_graph, save_graph
from trtship.measure import worst
from trtship.needs import need
from trtship.passes.base import interface_of
from trtship.passes.compare import Difference, default_sizes, differences, make_feeds
from trtship.progress import SILENT, Progress
from trtship.session.onnxruntime import OnnxRuntimeSession
from trtship.spec import Record

if TYPE_CHECKING:
    pass

Sizes = Sequence[Mapping[str, int]]


class SimplifyReport(Record, frozen=True):
    """Which graph was `kept`, and `why`; the measured `differences`, and the `bound` on their relative L2.

    The bound is that of `trtship.graphs.rounding` for the two graphs, as two independent errors: sqrt(a^2 + b^2).
    `nodes_after` is onnxsim's count, whichever graph was kept, and None when it produced none.
    """

    kept: Literal["simplified", "original"]
    why: str
    nodes_before: int
    nodes_after: int | None = None
    differences: tuple[Difference, ...] = ()
    bound: float | None = None


def simplify(
    source: Path,
    target: Path,
    *,
    sizes: Sizes | None = None,
    external_over: int = EXTERNAL_OVER,
    progress: Progress = SILENT,
) -> SimplifyReport:
    """Write the simplified graph to `target`, or the original one where any check fails, and say which.

    The checks: onnxsim's own, onnx's checker, inputs and outputs unchanged, and ours, both graphs through onnxruntime
    at `sizes` (default: every dynamic dimension 1, 2 and 3). Raises GraphError for a source that is no valid graph or
    does not run, OutputError when the target cannot be written.
    """
    if find_spec("onnxsim") is None:  # else only the process that runs it imports it, and torch with it
        need("onnxsim", purpose="simplifying a graph")
    original = load_graph(source)
    inputs, _ = interface_of(original)
    wanted = sizes if sizes is not None else default_sizes(inputs)
    with temporary_folder() as folder:
        draft = folder / "simplified.onnx"
        with progress.stage("simplify", f"{len(original.graph)} nodes"):
            fault = _run_onnxsim(source, draft, make_feeds(inputs, wanted[0]))
        report = SimplifyReport(kept="original", why=fault, nodes_before=len(original.graph))
        if not fault:
            with progress.stage("check the simplified graph"):
                report = _checked(source, draft, wanted, report)
        if report.kept == "original":
            progress.note(f"the graph is kept as it was: {report.why}")
            with OnnxRuntimeSession(source) as session:
                session.infer(make_feeds(session.inputs, wanted[0]))
        save_graph(load_graph(draft if report.kept == "simplified" else source), target, external_over=external_over)
    return report


def _run_onnxsim(source: Path, draft: Path, feeds: dict[str, Any]) -> str:
    """In a process of its own, since native code can crash; the fault, or nothing."""
    import numpy as np

    np.savez(draft.with_suffix(".npz"), **feeds)
    command = [sys.executable, "-m", "trtship.passes.onnxsim_process", str(source), str(draft)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace")
    if done.returncode < 0:
        return f"onnxsim crashed ({signal.Signals(-done.returncode).name})"
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        return f"onnxsim failed: {lines[-1][:300] if lines else f'exit code {done.returncode}'}"
    return ""


def _checked(source: Path, draft: Path, sizes: Sizes, report: SimplifyReport) -> SimplifyReport:
    before = load_graph(source)
    try:
        after = load_graph(draft)
        report = replace(report, nodes_after=len(after.graph))
        if interface_of(after) != interface_of(before):
            return replace(report, why="onnxsim changed the inputs or outputs")
        found = differences(source, draft, sizes=sizes)
        bound = math.hypot(*(rounding_bound(model, precision_of(model)).bound for model in (before, after)))
    except GraphError as error:
        return replace(report, why=f"{error.what}: {error.why}")
    worst_one = worst([difference.measure for difference in found])
    passed = worst_one is not None and worst_one <= bound
    verdict = "NaN or Inf" if worst_one is None else f"relative L2 at most {worst_one:.2g}"
    return replace(
        report,
        kept="simplified" if passed else "original",
        why=f"{'same outputs' if passed else 'other outputs'}: {verdict}, bound {bound:.2g}",
        differences=found,
        bound=bound,
    )
