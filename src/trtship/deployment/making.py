"""From the source to a plan: what every way to make it has in common, and what is this way's own."""

from __future__ import annotations

import msgspec

from trtship.cache import Entry
from trtship.calibrate.noise import quantization_noise
from trtship.deployment.stages import REPORT, Stages
from trtship.deployment.stages.calibrate import calibrated, quantized
from trtship.deployment.stages.graphs import ModelReport, export, optimized, simplified
from trtship.deployment.stages.original import labels_of, original
from trtship.deployment.stages.plan import build
from trtship.deployment.stages.precision import typed
from trtship.deployment.stages.sizes import ranges_of
from trtship.deployment.way import Way
from trtship.engine.build import BuildReport
from trtship.spec import ShapeRange, TensorSpec, batch_letter, batch_range, from_json
from trtship.verify import Bound, Reference


class Common(msgspec.Struct, frozen=True):
    """Made once, whatever the precision: the graphs in fp32 (`fast` is the last of them), what the original says of its
    reference rows, and the model's sizes and labels."""

    graph: Entry
    simple: Entry
    fast: Entry
    original: Entry
    model: ModelReport
    ranges: dict[str, ShapeRange]
    labels: tuple[str, ...] | None

    @property
    def reference(self) -> Reference:
        """The original's rows."""
        letter = batch_letter(self.model.inputs)
        return Reference.read(
            lambda name: self.original.read(f"reference/{name}"),
            inputs=self.model.inputs,
            outputs=self.model.export.outputs,
            sizes={name: r.opt for name, r in self.ranges.items() if name != letter},
            has=lambda name: f"reference/{name}" in self.original.files,
        )

    @property
    def usual_batch(self) -> int:
        return batch_range(self.model.inputs, self.ranges).opt


class Made(msgspec.Struct, frozen=True):
    """A plan, the strongly typed graph that it was built from, its inputs and outputs, and its bounds by subject.

    `quantized` is the graph with Q/DQ and `calibrated` the ranges, None where the precision has neither."""

    way: Way
    typed: Entry
    plan: Entry
    bounds: dict[str, Bound]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    quantized: Entry | None = None
    calibrated: Entry | None = None

    @property
    def build(self) -> BuildReport:
        """How the plan was built."""
        return from_json(self.plan.read(REPORT), BuildReport, what="the build's report")


def make_common(stages: Stages) -> Common:
    """Export, run the original, simplify, optimize."""
    graph, model = export(stages)
    ranges = ranges_of(stages.options, model.inputs)
    labels = labels_of(stages, model)
    said = original(stages, graph, model, ranges)
    simple = simplified(stages, graph, model)
    fast = optimized(stages, simple, model)
    return Common(graph=graph, simple=simple, fast=fast, original=said, model=model, ranges=ranges, labels=labels)


def make_plan(stages: Stages, common: Common, way: Way) -> Made:
    """Quantize where the precision asks for it, set the precision, build."""
    ranges = with_qdq = noise = None
    if way.precision.quantized:
        calibration = None
        if stages.options.scope != "weights":
            ranges, calibration = calibrated(stages, common.fast, common.model)
        with_qdq, report = quantized(stages, common.fast, way, calibration)
        noise = quantization_noise(report, calibration)
    graph, bounds = typed(
        stages,
        with_qdq or common.fast,
        way,
        exact=common.fast,
        original=common.original,
        model=common.model,
        noise=noise,
    )
    inputs, outputs = (
        tuple(msgspec.structs.replace(s, dtype=stages.options.io_dtype) if s.dtype == "float32" else s for s in specs)
        for specs in (common.model.inputs, common.model.export.outputs)
    )
    plan = build(stages, graph, way.precision, inputs, common.ranges)
    return Made(
        way=way,
        typed=graph,
        plan=plan,
        bounds=bounds,
        inputs=inputs,
        outputs=outputs,
        quantized=with_qdq,
        calibrated=ranges,
    )
