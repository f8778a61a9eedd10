"""What is under suspicion, run with some of its tensors kept: a graph through onnxruntime, or a plan built anew."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import msgspec

from trtship.engine import plan_apart
from trtship.errors import BuildError, GraphError
from trtship.family import Family
from trtship.files import temporary_folder
from trtship.passes.emulate import Emulate
from trtship.progress import SILENT, Progress
from trtship.session.base import Array, Session
from trtship.session.onnxruntime import OnnxRuntimeSession
from trtship.session.tensorrt import TensorRTSession
from trtship.spec import Precision, ShapeRange, TensorSpec
from trtship.verify.compare import as_session_takes
from trtship.verify.locate_graph import copy_of, part, written

if TYPE_CHECKING:
    import onnx_ir


FAILURES = (GraphError, BuildError)
"""What a suspect may raise that tells of itself, and not of the machine."""


class Kept(msgspec.Struct, frozen=True):
    """`values` of the tensors that were asked for; `outputs` those of the whole graph, where keeping tensors may have
    changed them, else None."""

    values: dict[str, Array]
    outputs: dict[str, Array] | None = None


class Suspect(ABC):
    """`model` names the tensors, and its types and shapes are known."""

    runtime: str
    model: onnx_ir.Model
    precision: Precision
    changes: ClassVar[bool]
    """Whether keeping a tensor may change what is computed, as it does where operators are fused."""

    @abstractmethod
    def keep(self, names: Sequence[str], feeds: Mapping[str, Array]) -> Kept:
        """Run on `feeds` and return these tensors. Raises one of `FAILURES` where that cannot be, and MachineError."""


class GraphRuns(Suspect):
    """A graph as it is written, through onnxruntime on the CPU; one in a low precision with every tensor rounded to it
    (`trtship.passes.emulate`)."""

    changes: ClassVar[bool] = False

    def __init__(self, model: onnx_ir.Model, precision: Precision) -> None:
        self.model, self.precision = model, precision
        self._run = Emulate().call(copy_of(model)).model
        self._renamed: dict[str, str] = {}
        for node in self._run.graph:
            for value in node.outputs:
                name = value.name or ""
                if name.endswith(ROUNDED):
                    self._renamed[name.removesuffix(ROUNDED)] = name
        self.runtime = f"onnxruntime, CPU, {precision.value} emulated" if self._renamed else "onnxruntime, CPU"

    def keep(self, names: Sequence[str], feeds: Mapping[str, Array]) -> Kept:
        wanted = {name: self._renamed.get(name, name) for name in names}
        found = run_part(self._run, list(dict.fromkeys(wanted.values())), feeds)
        return Kept({name: found[inner] for name, inner in wanted.items()})


ROUNDED = "/rounded"
"""What `Emulate` calls a tensor once it is rounded."""


def run_part(model: onnx_ir.Model, names: Sequence[str], feeds: Mapping[str, Array]) -> dict[str, Array]:
    """The tensors of these names, from a session that computes nothing else and fuses nothing."""
    inputs = [value.name or "" for value in model.graph.inputs if not value.is_initializer()]
    with (
        temporary_folder("trtship-debug-") as folder,
        OnnxRuntimeSession(written(part(model, inputs, names), folder / "part.onnx"), optimize=False) as session,
    ):
        return run_on(session, feeds)


def run_on(session: Session, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """The feeds that the session takes, in its own types."""
    wanted = {spec.name for spec in session.inputs}
    return session.infer(as_session_takes(session, {name: feeds[name] for name in feeds if name in wanted}))


class PlanRuns(Suspect):
    """A strongly typed graph through TensorRT, a plan built for each set of tensors that is kept, as the bundle's own
    was but for these. Needs a GPU that `family` runs on."""

    changes: ClassVar[bool] = True

    def __init__(
        self,
        model: onnx_ir.Model,
        precision: Precision,
        *,
        family: Family,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        ranges: Mapping[str, ShapeRange],
        single: Sequence[int] = (),
        device: int = 0,
        progress: Progress = SILENT,
    ) -> None:
        self.model, self.precision, self._family, self._device = model, precision, family, device
        self._inputs, self._outputs, self._ranges, self._single = inputs, outputs, ranges, tuple(single)
        self._progress = progress
        self.runtime = str(family)

    def keep(self, names: Sequence[str], feeds: Mapping[str, Array]) -> Kept:
        own = {spec.name for spec in self._outputs}
        data = self.build([name for name in names if name not in own])
        tf32 = self.precision.tf32
        with TensorRTSession(data, self._family, device=self._device, tf32=tf32, max_contexts=1) as session:
            self.runtime = session.runtime
            found = run_on(session, feeds)
        outputs = {spec.name: found[spec.name] for spec in self._outputs}
        return Kept({name: found.get(name + KEPT, found.get(name)) for name in names}, outputs)

    def build(self, names: Sequence[str]) -> bytes:
        """The plan with these tensors as outputs beside its own. Raises GraphError, BuildError."""
        with temporary_folder("trtship-debug-") as folder:
            graph = written(with_outputs(self.model, names), folder / "model.onnx")
            plan = plan_apart(
                graph,
                family=self._family,
                inputs=self._inputs,
                ranges=self._ranges,
                single=self._single,
                precision=self.precision,
                progress=self._progress,
            )
        return plan.data


KEPT = "/kept"


def with_outputs(model: onnx_ir.Model, names: Sequence[str]) -> onnx_ir.Model:
    """A copy with these tensors as outputs too; one in bfloat16, which numpy lacks, by way of a cast to fp32."""
    import onnx_ir as ir

    copy = copy_of(model)
    values = {value.name: value for node in copy.graph for value in node.outputs}
    for name in names:
        value = values[name]
        if not _needs_cast(value):
            copy.graph.outputs.append(value)
            continue
        kept = ir.Value(name=name + KEPT, shape=value.shape, type=ir.TensorType(ir.DataType.FLOAT))
        to = [ir.AttrInt64("to", int(ir.DataType.FLOAT))]
        copy.graph.append(ir.Node("", "Cast", [value], to, outputs=[kept], name=name + KEPT))
        copy.graph.outputs.append(kept)
    return copy


def _needs_cast(value: onnx_ir.Value) -> bool:
    return value.dtype is not None and value.dtype.name == "BFLOAT16"
