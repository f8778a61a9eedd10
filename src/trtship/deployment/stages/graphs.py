"""Source -> fp32 graph -> simpler -> faster."""

from __future__ import annotations

from pathlib import Path

import msgspec

from trtship.cache import Entry
from trtship.deployment.stages.base import GRAPH, REPORT, Stages, graph_digests
from trtship.deployment.stages.sizes import ranges_of
from trtship.export import ExportReport, graph_from_source, sizes_around
from trtship.export.realistic import checked_on_realistic
from trtship.input_ranges import check_input_ranges, example_domains
from trtship.input_values import InputDomain
from trtship.passes import simplify
from trtship.passes.input_domains import domains_of_graph
from trtship.passes.optimization import optimize
from trtship.passes.pass_report import OptimizeReport
from trtship.passes.registry import find_passes
from trtship.passes.thaw_unknown import thaw
from trtship.preprocess import Preprocess
from trtship.sources import LoadedModel
from trtship.spec import Record, TensorSpec, allowed_by, batch_letter, from_json, to_json

HOLDS = "rules on sizes, the values that inputs may hold, behind remainders too, small constants, caught errors"
"""In the export stage's key: what earlier versions of it remembered holds less."""


class ModelReport(Record, frozen=True):
    """The export stage's `report.json`. `domains` are the values that each input may hold; `samples` says which rows
    the user gave, and is empty without any."""

    export: ExportReport
    inputs: tuple[TensorSpec, ...]
    preprocess: Preprocess | None
    labels: tuple[str, ...] | None
    notes: tuple[str, ...]
    domains: dict[str, InputDomain] = msgspec.field(default_factory=dict)
    samples: str = ""


def export(stages: Stages) -> tuple[Entry, ModelReport]:
    """Source -> fp32 ONNX graph, checked against PyTorch."""

    def make(folder: Path) -> None:
        model = stages.model
        ranges = ranges_of(stages.options, model.inputs)  # what is missing is told before the work, not after it
        torch_model = model if isinstance(model, LoadedModel) else None
        preprocess = torch_model.preprocess if torch_model else None
        check_input_ranges(stages.options.input_ranges, model.inputs)
        samples = stages.samples(model.inputs, ranges, preprocess)
        report = graph_from_source(
            model,
            folder / GRAPH,
            ranges=ranges,
            opset=stages.options.opset,
            exporter=stages.options.exporter,
            thaw=thaw,
            domains=example_domains(model.inputs, stages.options.input_ranges),
            progress=stages.progress,
        )
        with stages.progress.stage("check the export", "on realistic inputs"):
            report, domains = checked_on_realistic(
                model,
                folder / GRAPH,
                report,
                domains_of=domains_of_graph,
                given=stages.options.input_ranges,
                samples=samples,
                ranges=ranges,
                allowed=allowed_by(report.rules),
            )
        found = ModelReport(
            export=report,
            inputs=model.inputs,
            preprocess=preprocess,
            labels=torch_model.labels if torch_model else None,
            notes=model.notes,
            domains=domains,
            samples="" if samples is None else samples.origin,
        )
        (folder / REPORT).write_bytes(to_json(found))

    def read(entry: Entry) -> ModelReport:
        return from_json(entry.read(REPORT), ModelReport, what="the export stage's report")

    def did(entry: Entry) -> str:
        report = read(entry).export
        thawed = f"a frozen batch made dynamic, in {len(report.thawed)} places" if report.thawed else ""
        rules = f"only where {' and '.join(rule.text for rule in report.rules)}" if report.rules else ""
        return "; ".join(filter(None, (thawed, rules)))

    parts = stages.part("model", "export", "sizes", "batch", "inputs", "input_ranges", "versions")
    entry = stages.run("export", {**parts, "holds": HOLDS}, make, did)
    return entry, read(entry)


def _sizes(stages: Stages, model: ModelReport) -> tuple[dict[str, int], ...]:
    """Where a rewritten graph is compared with the one before: sizes that break a rule run in neither."""
    return sizes_around(
        model.export.traced,
        stages.options.sizes,
        batch=batch_letter(model.inputs),
        allowed=allowed_by(model.export.rules),
    )


def simplified(stages: Stages, graph: Entry, model: ModelReport) -> Entry:
    """fp32 graph -> simpler fp32 graph, or the same where a check fails."""
    sizes = _sizes(stages, model)

    def make(folder: Path) -> None:
        with stages.progress.stage("simplify", "with onnxsim"):
            report = simplify(graph.folder / GRAPH, folder / GRAPH, sizes=sizes, progress=stages.progress)
        (folder / REPORT).write_bytes(to_json(report))

    key = {"graph": graph_digests(graph), "at": list(sizes), **stages.part("sizes", "versions")}
    return stages.run("simplify", key, make)


def optimized(stages: Stages, graph: Entry, model: ModelReport) -> Entry:
    """fp32 graph -> one that TensorRT runs faster, proved the same; `graph` itself where no pass is to run."""
    names = stages.options.passes
    if not names:
        return graph
    sizes = _sizes(stages, model)

    def make(folder: Path) -> None:
        report = optimize(
            graph.folder / GRAPH,
            folder / GRAPH,
            passes=find_passes(names),
            thaws=False,  # the export was checked at other batches
            sizes=sizes,
            together=True,
            progress=stages.progress,
        )
        (folder / REPORT).write_bytes(to_json(report))

    def did(entry: Entry) -> str:
        return from_json(entry.read(REPORT), OptimizeReport, what="the optimize stage's report").summary

    inputs = {"graph": graph_digests(graph), "at": list(sizes), **stages.part("passes", "sizes", "versions")}
    return stages.run("optimize", inputs, make, did)
