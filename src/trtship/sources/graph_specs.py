"""The inputs and outputs of an ONNX graph as TensorSpecs."""

from __future__ import annotations

import string
from typing import Any

from trtship.errors import GraphError
from trtship.needs import need
from trtship.spec import DTYPES, TensorSpec

LETTERS = [letter for letter in string.ascii_uppercase + string.ascii_lowercase if letter not in "xX"]
BATCH = "B"


def specs_of_graph(model: Any) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...], tuple[str, ...]]:
    """Inputs, outputs and notes of an `onnx.ModelProto`.

    Each symbolic dimension becomes one letter wherever it stands: B where it comes first in the first input, its own
    initial where that is free, any other letter else. A dimension without a name is taken for the batch where it comes
    first, for a size of its own elsewhere. Raises GraphError for types that are no tensors and for unknown ranks.
    """
    onnx = need("onnx", purpose="reading a graph")
    initializers = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in initializers]
    outputs = list(model.graph.output)
    if not inputs:
        raise GraphError(
            "the graph has no inputs",
            why="all that it reads is constant, so its outputs are too",
            do="export it with the tensors that change as inputs",
        )
    if any(not _has_shape(value) for value in outputs):
        inferred = onnx.shape_inference.infer_shapes(model)
        outputs = list(inferred.graph.output)
    names = _Letters(inputs)
    notes = [
        f"graph: took the unnamed first dimension of {value.name} for the batch"
        for value in inputs
        if _has_shape(value) and value.type.tensor_type.shape.dim and not _dims(value)[0]
    ]
    specs = [_spec(onnx, value, names) for value in (*inputs, *outputs)]
    return tuple(specs[: len(inputs)]), tuple(specs[len(inputs) :]), tuple(notes)


class _Letters:
    """One letter for each symbolic dimension, handed out as they are met."""

    def __init__(self, inputs: list[Any]) -> None:
        self.given: dict[str, str] = {}
        first = _dims(inputs[0]) if inputs and _has_shape(inputs[0]) else []
        if first and isinstance(first[0], str) and first[0]:
            self.given[first[0]] = BATCH

    def of(self, symbol: str) -> str:
        if symbol not in self.given:
            initials = [symbol[:1], symbol[:1].upper()]
            free = [letter for letter in [*initials, *LETTERS] if letter in LETTERS and letter not in self.taken]
            if not free:
                raise GraphError(
                    "the graph has too many dynamic dimensions",
                    why=f"more than {len(LETTERS)}",
                    do="export it with some of them fixed",
                )
            self.given[symbol] = free[0]
        return self.given[symbol]

    @property
    def taken(self) -> set[str]:
        return {*self.given.values(), BATCH}


def _spec(onnx: Any, value: Any, letters: _Letters) -> TensorSpec:
    if not _has_shape(value):
        raise GraphError(
            f"the rank of {value.name} is not known", why="the graph tells no shape for it", do="export it anew"
        )
    kind = onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type).lower()
    dtype = {"float": "float32", "double": "float64"}.get(kind, kind)
    if dtype not in DTYPES:
        raise GraphError(
            f"{value.name} has the type {kind}",
            why=f"the types are {', '.join(DTYPES)}",
            do="cast it to one of them within the graph",
        )
    shape: list[int | str] = []
    for index, dim in enumerate(_dims(value)):
        if isinstance(dim, int):
            shape.append(dim)
        elif dim:
            shape.append(letters.of(dim))
        else:
            shape.append(BATCH if index == 0 else letters.of(f"{value.name}[{index}]"))
    return TensorSpec(name=value.name, shape=tuple(shape), dtype=dtype)


def _has_shape(value: Any) -> bool:
    return bool(value.type.HasField("tensor_type") and value.type.tensor_type.HasField("shape"))


def _dims(value: Any) -> list[int | str]:
    """Sizes, symbols, and "" for dimensions with neither (or with -1, as some exporters write it)."""
    return [d.dim_value if d.dim_value > 0 else d.dim_param for d in value.type.tensor_type.shape.dim]
