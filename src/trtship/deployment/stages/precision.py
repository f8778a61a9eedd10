"""fp32 graph -> strongly typed graph, and the bounds that rounding gives both."""

from __future__ import annotations

from pathlib import Path

from trtship.cache import Entry
from trtship.deployment.stages.base import GRAPH, REPORT, Stages, graph_digests
from trtship.deployment.way import Way
from trtship.graphs import load_graph, rounding_bound
from trtship.passes import to_precision
from trtship.spec import Precision, from_json, to_json
from trtship.verify import Bound


def typed(stages: Stages, graph: Entry, way: Way) -> tuple[Entry, dict[str, Bound]]:
    """fp32 graph -> strongly typed graph of the wanted precision, and the bounds that rounding gives both."""
    precision = way.precision

    def make(folder: Path) -> None:
        with stages.progress.stage("set the precision", precision.value):
            report = to_precision(graph.folder / GRAPH, folder / GRAPH, precision, io_dtype=stages.options.io_dtype)
        (folder / REPORT).write_bytes(to_json(report))
        exact = rounding_bound(load_graph(graph.folder / GRAPH), Precision.FP32)
        rounded = rounding_bound(load_graph(folder / GRAPH), precision)
        found = {
            "graph fp32": _two(exact.bound, exact.bound, exact.derivation),
            f"graph {precision.value}": _two(rounded.bound, exact.bound, rounded.derivation),
        }
        found["plan"] = found[f"graph {precision.value}"]
        (folder / "bounds.json").write_bytes(to_json(found))

    inputs = {"graph": graph_digests(graph), "precision": precision.value, **stages.part("io_dtype", "versions")}
    entry = stages.run("precision", inputs, make)
    return entry, from_json(entry.read("bounds.json"), dict[str, Bound], what="bounds.json")


def _two(subject: float, original: float, derivation: str) -> Bound:
    """Both the subject and the original round: their bounds add up."""
    return Bound(value=subject + original, source=f"{derivation}; plus that of the fp32 original")
