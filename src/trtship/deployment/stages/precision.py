"""fp32 graph -> strongly typed graph, and the bounds that rounding gives both."""

from __future__ import annotations

from pathlib import Path

from trtship.cache import Entry
from trtship.calibrate.noise import quantization_bound
from trtship.deployment.stages.base import GRAPH, REPORT, Stages, graph_digests
from trtship.deployment.stages.graphs import ModelReport
from trtship.deployment.stages.original import read_reference, reference_digests
from trtship.deployment.way import Way
from trtship.graphs import load_graph, rounding_bound
from trtship.graphs.rounding import QUANTILE
from trtship.passes import to_precision
from trtship.spec import Precision, from_json, to_json
from trtship.verify import Bound
from trtship.verify.bounds import derive_bounds

BOUNDS = "bounds.json"
HOLDS = "positions in fp32, floors of small rows, einsum in small letters, roundings counted at each size"
"""What this version of trtship makes here that an earlier one did not, so that an entry of its cache is not taken."""


def typed(
    stages: Stages,
    graph: Entry,
    way: Way,
    *,
    exact: Entry,
    original: Entry,
    model: ModelReport,
    noise: dict[str, float] | None = None,
) -> tuple[Entry, dict[str, Bound]]:
    """fp32 graph -> strongly typed graph of the wanted precision, and the bounds that rounding gives both.

    `exact` is the fp32 graph, `original` has the reference rows on which its noise is measured; of a quantized
    precision, `graph` is the one with Q/DQ, and `noise` what its tensors lose (`trtship.calibrate.noise`).
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
        if noise is None:
            path = rounding_bound(low, precision).bound / QUANTILE
        else:
            path = quantization_bound(low, precision, noise).deviation
        with stages.progress.stage("measure the noise", f"what {precision.value} makes of the reference rows"):
            reference = read_reference(original, model)
            found = derive_bounds(
                folder / GRAPH,
                precision,
                reference,
                counted=full,
                path=path,
                losses=noise,
                graph=exact.folder / GRAPH,
            )
        (folder / BOUNDS).write_bytes(to_json(found))

    inputs = {
        "graph": graph_digests(graph),
        "exact": graph_digests(exact),
        "reference": reference_digests(original),
        "holds": HOLDS,
        "precision": precision.value,
        "kept": list(keep),
        "noise": noise,
        **stages.part("io_dtype", "versions"),
    }
    entry = stages.run("precision", inputs, make)
    return entry, from_json(entry.read(BOUNDS), dict[str, Bound], what=BOUNDS)
