"""A model's config.pbtxt, by Triton's model_config.proto.

What Triton makes of a field is in the sources of its tensorrt backend (instance_state.cc), of its onnxruntime backend
(onnxruntime.cc) and of its core (model_config_utils.cc).
"""

from __future__ import annotations

import itertools

from trtship.bundle.manifest import Manifest
from trtship.engine.profiles import profiles_of
from trtship.scale.batching import Batching
from trtship.scale.layout import Layout, type_of
from trtship.scale.served import Served
from trtship.scale.textproto import COMMENT, Fields, Word, text_of
from trtship.spec import Precision, TensorSpec, batch_range

LABELS = "labels.txt"
MARK = "from a bundle of trtship made"
"""In the comment at a config's head: by this, `--force` knows what it may replace."""
VERSION = 1
PLATFORMS = {"plan": "tensorrt_plan", "onnx": "onnxruntime_onnx"}
BACKENDS = {"plan": "tensorrt", "onnx": "onnxruntime"}


def config_text(
    name: str, manifest: Manifest, served: Served, layout: Layout, batching: Batching, *, labelled: TensorSpec | None
) -> str:
    """The whole file. `labelled` is the output that LABELS are of. Raises SpecError for a type that Triton has not."""
    remarks = (_title(manifest), *served.why, *batching.why, *remarks_of(manifest, served))
    return text_of(
        [
            *[(COMMENT, text) for text in remarks],
            ("name", name),
            ("platform", PLATFORMS[served.format]),
            ("backend", BACKENDS[served.format]),
            ("default_model_filename", f"model.{served.format}"),
            ("version_policy", [("specific", [("versions", (VERSION,))])]),
            ("max_batch_size", layout.max_batch_size),
            *[("input", _tensor(spec, layout)) for spec in layout.inputs],
            *[("output", _tensor(spec, layout, labelled=spec == labelled)) for spec in layout.outputs],
            ("instance_group", _instances(manifest, served, batching)),
            *_dynamic_batching(layout, batching),
            *_optimization(manifest, served, layout, batching),
            *[("model_warmup", _warmup(size, layout)) for size in sizes_of(manifest, layout)],
        ]
    )


def remarks_of(manifest: Manifest, served: Served) -> tuple[str, ...]:
    """What whoever serves the model should know beside what was chosen."""
    limits = batch_range(manifest.inputs, manifest.ranges)
    found = []
    if limits.min > 1 and served.format == "plan":
        found.append(f"the plan takes no batch below {limits.min}, which Triton cannot be told: send that many rows")
    if served.format == "plan" and limits.opt in manifest.profiles and limits.min < limits.max:
        found.append(
            f"at batch {limits.opt} Triton takes profile 0, for all sizes, and not the one for this size alone: it "
            "chooses by the distance to a profile's opt, and by the lower number where two are as near"
        )
    if served.format == "plan" and manifest.profiles:
        found.append(
            'while it loads, Triton tries each CUDA graph with each profile, and logs "Failed to set cuda graph shape" '
            "where a profile does not take the size: no harm, the profiles that take it have theirs"
        )
    return tuple(found)


def sizes_of(manifest: Manifest, layout: Layout) -> tuple[int, ...]:
    """The batches that are run before the model is ready: the range's min, opt and max, and those with a profile."""
    if layout.batch is None:
        return (1,)
    limits = layout.batch
    return tuple(sorted({limits.min, limits.opt, limits.max, *(n for n in manifest.profiles if n in limits)}))


def _title(m: Manifest) -> str:
    return f"{m.name}, {m.precision}, {MARK} {m.created}; SHA-256 of its plan: {m.files[m.plan]}"


def is_ours(config: str) -> bool:
    """Return whether the comment at the head of a config says that trtship wrote it; it may have been edited since."""
    head = itertools.takewhile(lambda line: line.startswith("#"), config.splitlines())
    return MARK in " ".join(line.lstrip("# ") for line in head)


def _tensor(spec: TensorSpec, layout: Layout, *, labelled: bool = False) -> Fields:
    """A tensor of one size a row, [B], is given to Triton as [B, 1] and reshaped: it has none without dimensions."""
    dims = layout.dims(spec)
    found: list[tuple[str, object]] = [("name", spec.name), ("data_type", type_of(spec)), ("dims", dims or (1,))]
    found += [] if dims else [("reshape", [])]
    found += [("label_filename", LABELS)] if labelled else []
    return found  # type: ignore[return-value]


def _instances(manifest: Manifest, served: Served, batching: Batching) -> Fields:
    """On a GPU and nowhere else: a server without one refuses the model, rather than run it slowly."""
    profiles = profiles_of(manifest.plan_inputs, manifest.ranges, single=manifest.profiles)
    several = served.format == "plan" and len(profiles) > 1
    return [
        ("count", batching.instances),
        ("kind", Word("KIND_GPU")),
        *[("profile", str(index)) for index in range(len(profiles)) if several],
    ]


def _dynamic_batching(layout: Layout, batching: Batching) -> Fields:
    if layout.max_batch_size <= 1:
        return []
    preferred: Fields = [("preferred_batch_size", batching.preferred)] if batching.preferred else []
    delay: Fields = [] if batching.delay_us is None else [("max_queue_delay_microseconds", batching.delay_us)]
    return [("dynamic_batching", [*preferred, *delay])]


def _optimization(manifest: Manifest, served: Served, layout: Layout, batching: Batching) -> Fields:
    if served.format == "plan":
        sizes = sorted({*sizes_of(manifest, layout), *batching.preferred}) if layout.batch else [0]
        specs: Fields = [("graph_spec", _graph_spec(size, layout)) for size in sizes]
        return [("optimization", [("cuda", [("graphs", True), *specs])])]
    level: Fields = [("graph", [("level", served.level)])] if served.level else []
    if manifest.precision is Precision.FP32:  # the CUDA provider multiplies fp32 in TF32 unless it is told not to
        tf32: Fields = [("parameters", [("key", "use_tf32"), ("value", "0")])]
        cuda: Fields = [("gpu_execution_accelerator", [("name", "cuda"), *tf32])]
        level = [*level, ("execution_accelerators", cuda)]
    return [("optimization", level)] if level else []


def _graph_spec(size: int, layout: Layout) -> Fields:
    """Of a CUDA graph. Inputs are named where a size beside the batch may vary: a graph is for one size of each."""
    if not layout.has_open_sizes:
        return [("batch_size", size)]

    def shape_of(spec: TensorSpec) -> Fields:
        return [("dim", layout.usual(spec))] if layout.usual(spec) else []

    shapes: Fields = [("input", [("key", spec.name), ("value", shape_of(spec))]) for spec in layout.inputs]
    return [("batch_size", size), *shapes]


def _warmup(size: int, layout: Layout) -> Fields:
    """Zeros: random bytes may be NaN, and no index."""

    def input_of(spec: TensorSpec) -> Fields:
        return [("data_type", type_of(spec)), ("dims", layout.usual(spec) or (1,)), ("zero_data", True)]

    inputs: Fields = [("inputs", [("key", spec.name), ("value", input_of(spec))]) for spec in layout.inputs]
    return [("name", f"batch {size}" if layout.batch else "as deployed"), ("batch_size", size), *inputs]
