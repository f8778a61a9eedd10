"""fp32 graph -> strongly typed graph, and the bounds that rounding gives both."""

from __future__ import annotations

from pathlib import Path

from trtship.cache import Entry
from trtship.calibrate.noise import quantization_bound
from trtship.deployment.stages.base import GRAPH, REPORT, Stages, graph_digests
from trtship.deployment.way import Way
from trtship.graphs import load_graph, rounding_bound
from trtship.passes import to_precision
from trtship.spec import Precision, from_json, to_json
from trtship.verify import Bound


def typed(
    stages: Stages, graph: Entry, way: Way, *, exact: Entry, noise: dict[str, float] | None = None
) -> tuple[Entry, dict[str, Bound]]:
    """fp32 graph -> strongly typed graph of the wanted precision, and the bounds that rounding gives both.

    `exact` is the fp32 graph; of a quantized precision, `graph` is the one with Q/DQ, and `noise` what its tensors
    lose (`trtship.calibrate.noise`).
    """
    precision = way.precision
    keep = () if precision.quantized else way.kept  # of those, what is kept is kept out of Q/DQ

    def make(folder: Path) -> None:
        with stages.progress.stage("set the precision", precision.value):
            report = to_precision(
                graph.folder / GRAPH, folder / GRAPH, precision, io_dtype=stages.options.io_dtype, keep=keep
            )
        (folder / REPORT).write_bytes(to_json(report))
        full = rounding_bound(load_graph(exact.folder / GRAPH), Precision.FP32)
        low = load_graph(folder / GRAPH)
        lower = rounding_bound(low, precision) if noise is None else quantization_bound(low, precision, noise)
        found = {
            "graph fp32": _two(full.bound, full.bound, full.derivation),
            f"graph {precision.value}": _two(lower.bound, full.bound, lower.derivation),
        }
        found["plan"] = found[f"graph {precision.value}"]
        (folder / "bounds.json").write_bytes(to_json(found))

    inputs = {
        "graph": graph_digests(graph),
        "exact": graph_digests(exact),
        "precision": precision.value,
        "kept": list(keep),
        "noise": noise,
        **stages.part("io_dtype", "versions"),
    }
    entry = stages.run("precision", inputs, make)
    return entry, from_json(entry.read("bounds.json"), dict[str, Bound], what="bounds.json")


def _two(subject: float, original: float, derivation: str) -> Bound:
    """Both the subject and the original round: their bounds add up."""
    return Bound(value=subject + original, source=f"{derivation}; plus that of the fp32 original")
