"""What a pass is: one method, and the promises that the base class holds it to.

After onnx_ir's own passes (`call(model) -> PassResult(model, modified)`), with what those lack: a report, and the
promise that a pass leaves the names, types and shapes of the graph's inputs and outputs alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

from trtship.errors import GraphError, TrtshipError
from trtship.graphs.storage import EXTERNAL_OVER, load_graph, save_graph
from trtship.spec import DTYPES, Record, TensorSpec

if TYPE_CHECKING:
    import onnx_ir

Report = TypeVar("Report", bound=Record)


@dataclass(frozen=True)
class PassResult(Generic[Report]):
    """`model` after the pass, whether it `modified` anything, and what it did."""

    model: onnx_ir.Model
    modified: bool
    report: Report


class Pass(ABC, Generic[Report]):
    """Override `call`, which may edit its model in place; `name` names the pass in messages."""

    name: ClassVar[str]

    @abstractmethod
    def call(self, model: onnx_ir.Model) -> PassResult[Report]:
        """Do the work. Raises GraphError for a graph that it cannot take."""

    def expected(self, inputs_and_outputs: Interface) -> Interface:
        """What the inputs and outputs are afterwards; a pass that is asked to change them says so here."""
        return inputs_and_outputs

    def __call__(self, model: onnx_ir.Model) -> PassResult[Report]:
        """Run, then hold the pass to its promise; a broken one is our bug (TrtshipError)."""
        expected = self.expected(interface_of(model))
        result = self.call(model)
        found = interface_of(result.model)
        if found != expected:
            why = f"{_in_words(expected)} became {_in_words(found)}"
            raise TrtshipError(f"the pass {self.name} changed the graph's inputs or outputs", why=why)
        return result

    def apply(self, source: Path, target: Path, *, external_over: int = EXTERNAL_OVER) -> Report:
        """Read, run, and write `target`, which onnx's checker must accept. Raises GraphError, OutputError."""
        result = self(load_graph(source))
        save_graph(result.model, target, external_over=external_over)
        return result.report


Interface = tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]
"""A graph's inputs and outputs."""


def interface_of(model: onnx_ir.Model) -> Interface:
    """Inputs (those that are no initializers) and outputs, with their declared shapes. Raises GraphError."""
    initializers = model.graph.initializers
    inputs = [value for value in model.graph.inputs if value.name not in initializers]
    return tuple(map(spec_of, inputs)), tuple(map(spec_of, model.graph.outputs))


def spec_of(value: onnx_ir.Value) -> TensorSpec:
    """Name, shape and dtype; a dynamic size without a name gets one of its own. Raises GraphError without a type."""
    dtype = "" if value.dtype is None else NAMES.get(value.dtype.name, value.dtype.name.lower())
    if dtype not in DTYPES or value.shape is None:
        why = f"its type is {value.type}, its shape {value.shape}"
        raise GraphError(f"the graph's tensor {value.name} cannot be an input or output", why=why, do="export it again")
    shape = tuple(
        size if isinstance(size, int) else (size.value or f"{value.name}.{axis}")
        for axis, size in enumerate(value.shape)
    )
    return TensorSpec(name=value.name or "", shape=shape, dtype=dtype)


NAMES = {"FLOAT": "float32", "DOUBLE": "float64"}


def _in_words(interface: Interface) -> str:
    return " -> ".join(", ".join(map(str, specs)) for specs in interface)
