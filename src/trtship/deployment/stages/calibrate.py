"""fp32 graph -> ranges of its tensors -> fp32 graph with Q/DQ."""

from __future__ import annotations

from pathlib import Path

from trtship.cache import Entry
from trtship.calibrate import Calibration, Feeds, calibrate, feeds_of_folder, feeds_of_samples
from trtship.deployment.stages.base import GRAPH, REPORT, Stages, graph_digests
from trtship.deployment.stages.graphs import ModelReport
from trtship.deployment.stages.sizes import ranges_of
from trtship.deployment.way import Way
from trtship.errors import GraphError, SpecError
from trtship.passes.quantize import QuantizeReport, to_quantized
from trtship.passes.quantize_places import tensors_to_calibrate
from trtship.spec import Precision, from_json, to_json


def calibrated(stages: Stages, graph: Entry, model: ModelReport) -> tuple[Entry, Calibration]:
    """The ranges of all tensors that may be quantized, whatever the precision: from the pictures of --calib, else from
    the user's own inputs, else from the pictures of --eval. Raises SpecError where none was given."""
    options = stages.options
    folder = options.calib_dir or (options.eval_dir if stages.given is None else None)
    if folder is None and stages.given is None:
        raise SpecError(
            "fp8 and int8 need inputs to calibrate on",
            why="their scales come from what the model makes of them",
            do="add --calib DIR, with some hundred pictures like those that it will see, or --inputs FILE",
        )
    if folder is not None and options.calib_dir is None:
        stages.progress.note(f"calibrating on the pictures of --eval, {folder}: --calib DIR names others")

    def make(place: Path) -> None:
        with stages.progress.stage("calibrate", f"by {options.calib_method}"):
            source = graph.folder / GRAPH
            feeds = _feeds(stages, folder, model)
            tensors = tensors_to_calibrate(source)
            found = calibrate(source, tensors, feeds, method=options.calib_method, progress=stages.progress)
        (place / REPORT).write_bytes(to_json(found))

    def read(entry: Entry) -> Calibration:
        return from_json(entry.read(REPORT), Calibration, what="the calibration")

    def did(entry: Entry) -> str:
        found = read(entry)
        return f"{len(found.tensors)} tensors on {found.pictures} pictures, by {found.method}"

    key = {"graph": graph_digests(graph), **stages.part("calib", "versions")}
    entry = stages.run("calibrate", key, make, did)
    return entry, read(entry)


def _feeds(stages: Stages, folder: str | None, model: ModelReport) -> Feeds:
    if folder is not None:
        return feeds_of_folder(folder, model.inputs, model.preprocess)
    samples = stages.samples(model.inputs, ranges_of(stages.options, model.inputs), model.preprocess)
    assert samples is not None
    return feeds_of_samples(samples, model.inputs)


def quantized(stages: Stages, graph: Entry, way: Way, calibration: Calibration | None) -> tuple[Entry, QuantizeReport]:
    """`way`'s nodes that are kept stay out of Q/DQ. Weights alone need no `calibration`. TensorRT for RTX 1.6 cannot
    build convolutions in int8 (ResNet-50, for compute capabilities 7.5, 8.0, 8.9 and 12.0)."""
    convolutions = stages.family.name != "tensorrt_rtx" or way.precision is not Precision.INT8
    channels_behind = stages.family.is_rtx
    scope, ranges = stages.options.scope, calibration.ranges if calibration is not None else {}

    def make(folder: Path) -> None:
        with stages.progress.stage("quantize", f"to {way.precision.value}"):
            report = to_quantized(
                graph.folder / GRAPH,
                folder / GRAPH,
                way.precision,
                ranges,
                scope=scope,
                exclude=way.kept,
                convolutions=convolutions,
                channels_behind=channels_behind,
            )
        if not report.products:
            raise GraphError(
                "there is nothing in the graph to quantize",
                why="; ".join(sorted(set(report.left_out.values())))
                or "it has no product of a tensor with constant weights",
                do="use --precision fp16; --quantize all takes in what costs kernels, weights the weights alone",
            )
        (folder / REPORT).write_bytes(to_json(report))

    def read(entry: Entry) -> QuantizeReport:
        return from_json(entry.read(REPORT), QuantizeReport, what="the quantize stage's report")

    def did(entry: Entry) -> str:
        found = read(entry)
        return f"{len(found.products)} products with weights, {len(found.left_out)} left out"

    key = {
        "graph": graph_digests(graph),
        "precision": way.precision.value,
        "kept": list(way.kept),
        "scope": scope,
        "convolutions": convolutions,
        "channels_behind": channels_behind,
        "ranges": ranges,
        **stages.part("versions"),
    }
    entry = stages.run("quantize", key, make, did, of=way.name if stages.options.precision is None else "")
    return entry, read(entry)
