"""The range of an input of floats, from the normalisation that is done before the graph or that it begins with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from trtship.input_values import InputDomain, default_domain
from trtship.preprocess import Preprocess, ends_of_pixels
from trtship.spec import TensorSpec

if TYPE_CHECKING:
    import onnx_ir

PASSED = frozenset({"Identity", "Cast", "Transpose", "Reshape", "Unsqueeze", "Squeeze", "Flatten"})
DEVIATIONS = 3.0
"""How far from the running mean of a first BatchNormalization its inputs are tried, in deviations."""


def float_domain(model: onnx_ir.Model, spec: TensorSpec, preprocess: Preprocess | None = None) -> InputDomain:
    """Return the range that `preprocess` gives pictures, else the one that the graph's first operators expect, else
    N(0, 1)."""
    if preprocess is not None and len(spec.shape) == 4:
        low, high = picture_range(preprocess)
        return _between(low, high, f"{low:.4g}..{high:.4g}, what the preprocessing makes of black and of white")
    begins = next((value for value in model.graph.inputs if value.name == spec.name), None)
    found = None if begins is None else _normalized(begins, is_picture=len(spec.shape) >= 3)
    if found is None:
        return default_domain(spec)
    low, high, how = found
    return _between(low, high, f"{low:.4g}..{high:.4g}, what the graph's own normalisation ({how}) expects")


def picture_range(preprocess: Preprocess) -> tuple[float, float]:
    """Return the least and the largest number that `preprocess` makes of a pixel, in any channel."""
    ends = ends_of_pixels(preprocess)
    return float(ends.min()), float(ends.max())


def _between(low: float, high: float, origin: str) -> InputDomain:
    return InputDomain(kind="uniform", low=low, high=high, origin=origin, values=(low, high))


def _normalized(value: onnx_ir.Value, *, is_picture: bool) -> tuple[float, float, str] | None:
    """Return the range of inputs that the affine operators behind `value` bring to about -3 to 3; None without any.

    Pictures are 0..255 or 0..1: the one is taken whose ends come out no more than 10 apart and whose mean lies inside.
    """
    scale, shift, names = np.ones(1), np.zeros(1), []
    while True:
        nodes = [node for node, _ in value.uses()]
        if len(nodes) != 1:
            break
        node = nodes[0]
        if node.op_type in PASSED:
            value = node.outputs[0]
            continue
        if node.op_type == "BatchNormalization" and node.inputs[0] is value:
            return _of_statistics(node, scale, shift)
        step = _affine(node, value)
        if step is None:
            break
        scale, shift = scale * step[0], shift * step[0] + step[1]
        names.append(node.op_type)
        value = node.outputs[0]
    if not names or not is_picture:
        return None
    with np.errstate(all="ignore"):
        mean, span = -shift / scale, np.abs(scale)
    if not (np.isfinite(mean).all() and np.isfinite(span).all()):
        return None
    how = ", ".join(names)
    if ((mean >= 0) & (mean <= 255)).all() and ((span * 255 >= 0.5) & (span * 255 <= 10)).all():
        return 0.0, 255.0, how
    if ((mean > 0) & (mean < 1)).all() and ((span >= 1) & (span <= 20)).all():
        return 0.0, 1.0, how
    return None


def _of_statistics(node: onnx_ir.Node, scale: Any, shift: Any) -> tuple[float, float, str] | None:
    """Return mean - 3 to mean + 3 deviations of a first BatchNormalization, in terms of the graph's input."""
    mean, variance = (_constant(v) for v in node.inputs[3:5])
    if mean is None or variance is None or np.any(scale == 0) or (not mean.any() and np.allclose(variance, 1)):
        return None
    deviation = np.sqrt(np.maximum(variance, 0.0))
    ends = [(mean + sign * DEVIATIONS * deviation - shift.max()) / scale.max() for sign in (-1, 1)]
    low, high = float(np.min(ends)), float(np.max(ends))
    return (low, high, "BatchNormalization") if np.isfinite([low, high]).all() and low < high else None


def _affine(node: onnx_ir.Node, value: onnx_ir.Value) -> tuple[Any, Any] | None:
    """Return scale and shift of an Add, Sub, Mul or Div with a constant of at most 16 numbers."""
    if node.op_type not in ("Add", "Sub", "Mul", "Div") or len(node.inputs) != 2:
        return None
    first = node.inputs[0] is value
    other = _constant(node.inputs[1 if first else 0])
    if other is None or other.size > 16:
        return None
    c = other.astype(np.float64).reshape(-1)
    one, zero = np.ones(1), np.zeros(1)
    if node.op_type == "Add":
        return one, c
    if node.op_type == "Sub":
        return (one, -c) if first else (-one, c)
    if node.op_type == "Mul":
        return c, zero
    return (1 / c, zero) if first and np.all(c != 0) else None


def _constant(value: onnx_ir.Value | None) -> Any:
    if value is None or value.is_graph_input():
        return None
    if value.const_value is not None:
        return value.const_value.numpy()
    node = value.producer()
    if node is not None and node.op_type == "Constant" and "value" in node.attributes:
        return node.attributes["value"].as_tensor().numpy()
    if node is not None and node.op_type in ("Identity", "Cast", "Unsqueeze", "Reshape"):
        return _constant(node.inputs[0])
    return None
