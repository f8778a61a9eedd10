"""The last step of a deploy: how far each layer is off, how long the stages took, and the report."""

from __future__ import annotations

from pathlib import Path

from trtship.bundle.bundle import Bundle
from trtship.bundle.graph_files import private_graphs
from trtship.deployment.stages import REPORT, Stages
from trtship.report import StageTime, write_report
from trtship.report.evidence import ERRORS, STAGES
from trtship.spec import batch_range, from_json, to_json
from trtship.verify.error_by_layer import ErrorsByLayer, errors_by_layer, rows_to_run


class _NotRead(Exception):
    """Nothing could be read out: this is not remembered, it may have been this process's."""

    def __init__(self, found: ErrorsByLayer) -> None:
        self.found = found


def finish(stages: Stages, bundle: Bundle) -> None:
    """Complete a bundle that has its verdicts, in place."""
    low = bundle.manifest.precision_graph != bundle.manifest.graph
    evidence = {ERRORS: to_json(_by_layer(stages, bundle))} if low else {}
    times = [StageTime(name=one.name, seconds=one.made_in, did=one.did) for one in stages.results]
    write_report(bundle.with_files({**evidence, STAGES: to_json(times)}))


def _by_layer(stages: Stages, bundle: Bundle) -> ErrorsByLayer:
    m = bundle.manifest
    rows = rows_to_run(batch_range(m.inputs, m.ranges))

    def make(folder: Path) -> None:
        said = f"{m.precision.value} with fp32, through onnxruntime"
        with stages.progress.stage("compare layer by layer", said), private_graphs(bundle) as graph:
            full, low = graph(m.graph), graph(m.precision_graph)
            found = errors_by_layer(full, low, bundle.reference(), rows=rows, progress=stages.progress)
        if found.reason:
            raise _NotRead(found)
        (folder / REPORT).write_bytes(to_json(found))

    own = (m.graph, m.precision_graph, "reference/")
    key = {
        "files": {name: digest for name, digest in m.files.items() if name.startswith(own)},
        "rows": rows,
        **stages.part("versions"),
    }
    try:
        entry = stages.run("error by layer", key, make)
    except _NotRead as fault:
        stages.progress.note(f"the error by layer is not known: {fault.found.reason}")
        return fault.found
    return from_json(entry.read(REPORT), ErrorsByLayer, what="the errors by layer")
