"""What of a bundle Triton can run: its plan through the tensorrt backend, or its ONNX graph through onnxruntime's.

Triton's tensorrt backend is linked with libnvinfer, full TensorRT (its CMakeLists.txt). TensorRT for RTX is another
library, whose plans load in the very release that wrote them alone (NVIDIA's TensorRT-RTX documentation, "Engine
Compatibility"), and no backend of Triton's links that: of a bundle whose plan is for RTX, the graph is served.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from trtship.bundle.bundle import Bundle
from trtship.bundle.graph_files import graph_session, private_graphs
from trtship.bundle.room import require_room
from trtship.errors import GateError, SpecError
from trtship.needs import need
from trtship.progress import SILENT, Progress
from trtship.scale.speeds import right_on_cuda
from trtship.session.onnxruntime import CPU
from trtship.session.onnxruntime import SILENT as FATAL_ONLY
from trtship.session.trial import Trials, Way
from trtship.spec import Precision, TensorSpec, as_plain, batch_range
from trtship.verify import compare

Format = Literal["plan", "onnx"]
FULL = "tensorrt"
LEVELS = ((0, "ORT_ENABLE_ALL"), (1, "ORT_ENABLE_EXTENDED"), (-1, "ORT_ENABLE_BASIC"), (2, "ORT_DISABLE_ALL"))
"""`optimization.graph.level` of Triton's onnxruntime backend and what it makes of it, most optimized first
(`ModelState::ModelState` in its onnxruntime.cc; model_config.proto tells it otherwise)."""


class Served(msgspec.Struct, frozen=True):
    """What goes into the version's folder: `files` maps its files to the bundle's. `level` is onnxruntime's, 0 for a
    plan; `why` says what was chosen and what is not known of it."""

    format: Format
    files: dict[str, str]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    level: int
    subject: str
    why: tuple[str, ...]


def served_of(bundle: Bundle, wanted: Format | None = None, *, progress: Progress = SILENT) -> Served:
    """The plan of full TensorRT, else the graph; or what is `wanted`.

    Raises SpecError for a plan that Triton cannot load, GateError where a gate failed or the graph does not give the
    bundle's reference here, DependencyError where onnxruntime is not here to try it.
    """
    m = bundle.manifest
    rtx = m.family != FULL
    if wanted == "plan" and rtx:
        raise SpecError(
            f"Triton cannot load the plan in {bundle.folder}",
            why=f"it was built with {m.family} {m.family_version}, and Triton's tensorrt backend links full TensorRT, "
            "which loads plans of its own alone",
            do="--format onnx, or deploy with --family tensorrt on a machine that has it",
        )
    if wanted == "onnx" or rtx:
        return _graph(bundle, "as asked" if wanted else _no_plan(bundle), progress)
    _refuse_failed(bundle, "plan")
    why = [f"the plan, which needs {m.family} {m.family_version} in the server and a GPU like the one it was built on"]
    if not any(v.subject == "plan" and v.gate == "rel_l2" and v.state == "passed" for v in m.verdicts):
        why.append("the plan was not verified on a GPU yet: trtship verify does that where there is one")
    return Served("plan", {"model.plan": m.plan}, m.plan_inputs, m.plan_outputs, 0, "plan", tuple(why))


def _no_plan(bundle: Bundle) -> str:
    m = bundle.manifest
    return f"the plan is of {m.family} {m.family_version}, which Triton's tensorrt backend, full TensorRT, cannot load"


def _graph(bundle: Bundle, because: str, progress: Progress) -> Served:
    m = bundle.manifest
    on_cuda = right_on_cuda(bundle) if m.precision is Precision.FP16 else None
    low = m.precision is Precision.FP16 and on_cuda is not False
    name = m.precision_graph if low else m.graph
    inputs, outputs = (m.plan_inputs, m.plan_outputs) if low else (m.inputs, m.outputs)
    subject = "graph fp32" if name == m.graph else f"graph {m.precision}"
    _refuse_failed(bundle, subject)
    with private_graphs(bundle) as graph:
        level, reason = level_for(graph(name))
    _check(bundle, name, subject, progress)
    why = [f"the ONNX graph {name} through onnxruntime: {because}", _which(m.precision, low=low)]
    if (inputs, outputs) != (m.plan_inputs, m.plan_outputs):
        why.append("its inputs and outputs are the model's own types, not those that the plan was asked for")
    if reason:
        why.append(
            f"onnxruntime's optimizations are held at {dict(LEVELS)[level]}: it failed with more of them ({reason})"
        )
    known = "was right too when it was benched" if on_cuda else "has not been tried"
    why.append(f"it gave the bundle's reference on onnxruntime's CPU provider here; on its CUDA provider it {known}")
    data = {f"model.onnx{one[len(name) :]}": one for one in m.files if one.startswith(name)}
    return Served("onnx", data, inputs, outputs, level, subject, tuple(why))


def _which(precision: Precision, *, low: bool) -> str:
    """Why this graph: onnxruntime's CUDA provider has kernels for all that a vision model does in fp32 and fp16, for
    some of it in bf16 and for little between QuantizeLinear and DequantizeLinear."""
    if low:
        return "the strongly typed fp16 graph, since onnxruntime's CUDA provider runs fp16"
    if precision in (Precision.FP32, Precision.TF32):
        return "the fp32 graph, which the plan was built from too"
    if precision is Precision.FP16:
        return "the fp32 graph: the fp16 one was wrong on onnxruntime's CUDA provider when it was benched"
    return f"the fp32 graph: onnxruntime's CUDA provider lacks kernels that the {precision} graph needs"


def _refuse_failed(bundle: Bundle, subject: str) -> None:
    failed = next((v for v in bundle.manifest.verdicts if v.subject == subject and v.state == "failed"), None)
    if failed is not None:
        raise GateError(
            f"the {subject} of {bundle.folder} is not handed over",
            why=f"its gate {failed.gate} failed: {failed.reason}",
            do="trtship debug finds the tensor that is wrong; deploy again",
            evidence=as_plain(failed),
        )


def level_for(path: Path) -> tuple[int, str]:
    """The highest level at which onnxruntime loads the graph, and why it does not at the one above: its fusions make
    graphs of mixed types that it then refuses itself (1.32 does so of a LayerNorm in fp32 that is scaled in fp16).
    A graph that onnxruntime may crash on is opened in a process of its own first. Raises GateError where none does."""
    ort = need("onnxruntime", purpose="trying the graph that Triton will run")
    trials = Trials(path, name=path.name, version=ort.__version__)
    reason = ""
    for level, constant in LEVELS:
        if crash := trials.crash(Way((CPU,), constant)):
            reason = reason or crash
            continue
        options = ort.SessionOptions()
        options.log_severity_level = FATAL_ONLY
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, constant)
        try:
            ort.InferenceSession(str(path), options, providers=[CPU])
        except Exception as error:
            reason = reason or " ".join(str(error).split())[:300]
            continue
        return level, reason
    raise GateError(f"onnxruntime cannot load {path}", why=reason, do="trtship verify checks the bundle")


def _check(bundle: Bundle, name: str, subject: str, progress: Progress) -> None:
    """The bytes that are written, run once on the bundle's reference. Raises GateError."""
    m = bundle.manifest
    batch = batch_range(m.inputs, m.ranges).opt
    require_room(bundle, batch=batch)
    said = "through onnxruntime, against the bundle's reference"
    with progress.stage(f"check {name}", said), graph_session(bundle, name) as session:
        verdict = compare(session, bundle.reference(), subject=subject, batches=[batch], bound=m.bounds[subject])
    if verdict.state != "passed":
        raise GateError(
            f"{name} of {bundle.folder} is not the model on onnxruntime",
            why=verdict.reason,
            do="trtship debug finds the tensor that is wrong",
            evidence=as_plain(verdict),
        )
