"""A source, whatever its kind, as a checked ONNX graph."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from trtship.errors import SpecError
from trtship.export.exporters import Exporter
from trtship.export.graph import adopt_graph
from trtship.export.mend import Thaw
from trtship.export.onnx import EXPORTERS, ExportReport, check_opset, onnx_from_torch, traced_sizes
from trtship.export.original import check_original
from trtship.export.realistic import DomainsOf, checked_on_realistic
from trtship.files import draft_beside, refuse_to_replace
from trtship.input_files import SampleSource
from trtship.input_ranges import InputRanges, check_input_ranges, example_domains
from trtship.input_values import InputDomain
from trtship.progress import SILENT, Progress
from trtship.sources import LoadedGraph, LoadedModel, SourceOptions, resolve
from trtship.spec import ShapeRange, allowed_by


def graph_from_source(
    model: LoadedModel | LoadedGraph,
    target: Path,
    *,
    ranges: Mapping[str, ShapeRange],
    opset: int | None = None,
    exporter: str | None = None,
    thaw: Thaw | None = None,
    domains: Mapping[str, InputDomain] | None = None,
    progress: Progress = SILENT,
) -> ExportReport:
    """Write a loaded source's graph to `target`, checked. `thaw` mends a batch that became a constant; `domains` are
    the values that the inputs may hold.

    Raises as `check_original`, `onnx_from_torch` and `adopt_graph` do.
    """
    if isinstance(model, LoadedGraph):
        if opset is not None or exporter is not None:
            raise SpecError(
                "--opset and --exporter do not apply to an ONNX file",
                why="it is exported already",
                do="leave them away",
            )
        return adopt_graph(model, target, ranges=ranges, thaw=thaw, progress=progress)
    check_original(model, traced=traced_sizes(model.inputs, ranges), domains=domains, progress=progress)
    return onnx_from_torch(
        model.module,
        target,
        inputs=model.inputs,
        outputs=model.outputs,
        ranges=ranges,
        opset=opset,
        exporter=parse_exporter(exporter),
        thaw=thaw,
        domains=domains,
        progress=progress,
    )


def parse_exporter(text: str | None) -> Exporter | None:
    """Raises SpecError for a name unknown."""
    for name in EXPORTERS:
        if text == name:
            return name
    if text is None:
        return None
    raise SpecError(
        f"unknown exporter {text!r}", why=f"the exporters are {', '.join(EXPORTERS)}", do="name one, or leave it away"
    )


def export_source(
    options: SourceOptions,
    target: Path,
    *,
    ranges: Mapping[str, ShapeRange],
    opset: int | None = None,
    exporter: str | None = None,
    thaw: Thaw | None = None,
    domains_of: DomainsOf | None = None,
    inputs: SampleSource | None = None,
    input_ranges: InputRanges | None = None,
    force: bool = False,
    progress: Progress = SILENT,
) -> ExportReport:
    """Load a source and write its checked graph to `target`, whole or not at all; `thaw` as above.

    With `domains_of`, the graph is checked on values that fit it, on `inputs`, and in `input_ranges`, too. Raises
    UserError, GateError.
    """
    parse_exporter(exporter)
    check_opset(opset)
    refuse_to_replace(target, force=force)
    source = resolve(options.source)
    source.check(options)
    model = source.load(options, progress)
    preprocess = model.preprocess if isinstance(model, LoadedModel) else None
    check_input_ranges(input_ranges or {}, model.inputs)
    samples = None if inputs is None else inputs.read(model.inputs, ranges=ranges, preprocess=preprocess)
    with draft_beside(target) as draft:
        report = graph_from_source(
            model,
            draft / target.name,
            ranges=ranges,
            opset=opset,
            exporter=exporter,
            thaw=thaw,
            domains=example_domains(model.inputs, input_ranges or {}),
            progress=progress,
        )
        if domains_of is not None:
            with progress.stage("check the export", "on realistic inputs"):
                report, _ = checked_on_realistic(
                    model,
                    draft / target.name,
                    report,
                    domains_of=domains_of,
                    given=input_ranges or {},
                    samples=samples,
                    ranges=ranges,
                    allowed=allowed_by(report.rules),
                )
        for file in sorted(draft.iterdir(), key=lambda p: p.name == target.name):
            file.replace(target.parent / file.name)
    return report
