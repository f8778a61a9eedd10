"""Values that fit each input of a graph: ids over the whole table that they index, masks, lengths, bytes, pictures.

An input's elements are followed through the graph as linear forms, `2 * ids + 1`, up to the operators that tell what
they are: a Gather, a one-hot, a comparison with a range of positions, a condition.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trtship.graphs.storage import load_graph
from trtship.input_values import InputDomain, Part, is_floating
from trtship.passes.input_floats import float_domain
from trtship.passes.input_flow import follow
from trtship.passes.input_forms import Findings, Limit
from trtship.preprocess import Preprocess
from trtship.spec import ShapeRange, TensorSpec

if TYPE_CHECKING:
    import onnx_ir

WHOLE = {"uint8": (0, 255), "int8": (-128, 127)}
"""Small integer types are data as they are, bytes of pictures for example: all of their values."""
STEPS = 999
"""The upper end of whole numbers that a graph computes with and does not bound: the steps of a diffusion model are 0 to
999 (Ho et al., "Denoising Diffusion Probabilistic Models", 2020), and years, seconds and prices are no smaller."""


def domains_of_graph(
    graph: Path | onnx_ir.Model,
    inputs: Sequence[TensorSpec],
    *,
    ranges: Mapping[str, ShapeRange] | None = None,
    preprocess: Preprocess | None = None,
) -> dict[str, InputDomain]:
    """Return what each input may hold, as the fp32 graph and the preprocessing tell.

    Args:
        graph: An ONNX file, or the graph itself, whose dynamic sizes have the letters of `inputs`.
        inputs: The model's inputs.
        ranges: The ranges of the dynamic sizes, as far as they are known.
        preprocess: How pictures become the model's only input, where that is known.

    Returns:
        A domain for each input, by name. Ids never lie outside of a table that they index.

    Raises:
        GraphError: `graph` is no ONNX file.
    """
    model = load_graph(graph) if isinstance(graph, Path) else graph
    known = {value.name for value in model.graph.inputs}
    whole = [spec for spec in inputs if not is_floating(spec.dtype) and spec.name in known]
    found = {spec.name: Findings() for spec in inputs}
    floats = [spec for spec in inputs if is_floating(spec.dtype) and spec.name in known]
    if whole or len(inputs) > 1:  # one input of floats is a picture, or the like
        found |= follow(model, [*whole, *floats], ranges or {})
    domains = {}
    for spec in inputs:
        findings = found.get(spec.name) or Findings()
        if is_floating(spec.dtype) and not findings.limits:
            is_mask = findings.is_additive_mask or ("mask" in spec.name.lower() and findings.signals)
            own = preprocess if len(inputs) == 1 else None
            domains[spec.name] = mask_domain() if is_mask else float_domain(model, spec, own)
        else:
            domains[spec.name] = _whole_numbers(spec, findings, ranges or {})
    return domains


def mask_domain() -> InputDomain:
    """Return the domain of a mask."""
    return InputDomain(
        kind="mask", low=0.0, high=1.0, origin="a mask: ones, then a tail of zeros, of other lengths in each row"
    )


def _whole_numbers(spec: TensorSpec, found: Findings, ranges: Mapping[str, ShapeRange]) -> InputDomain:
    limits = [limit for limit in found.limits if limit.part is None]
    parts = [limit for limit in found.limits if limit.part is not None]
    if spec.dtype == "bool":
        return mask_domain()
    if limits or parts:
        return _limited(spec, limits, parts, found, ranges)
    is_picture = len(spec.shape) >= 4 or (len(spec.shape) == 3 and spec.shape[-1] in (1, 3, 4))
    is_data = spec.dtype in WHOLE and len(spec.shape) >= 3
    if found.signals and not is_data and not (found.signals == {"condition"} and found.values):
        return mask_domain()
    if "mask" in spec.name.lower() and not is_picture:
        return mask_domain()
    if spec.dtype in WHOLE or is_picture:
        low, high = WHOLE.get(spec.dtype, (0, 255))
        origin = f"{low}..{high}, " + (f"all of {spec.dtype}" if spec.dtype in WHOLE else "the bytes of pictures")
        return _uniform(low, high, origin, found.values)
    if found.soft is not None:
        low, high = (int(v) for v in found.soft)
        return _uniform(low, high, f"{low}..{high}, the range that the graph clips it to", found.values)
    low, high = min([0, *map(int, found.values)]), max(map(int, found.values), default=0)
    if found.signals:  # compared with several numbers, 0 and 1 among them: kinds
        return _uniform(low, high, f"{low}..{high}, the numbers that it is compared with", found.values)
    high = max(STEPS, high)
    return _uniform(low, high, f"{low}..{high}, invented: nothing in the graph bounds it", found.values)


def _limited(
    spec: TensorSpec,
    limits: Sequence[Limit],
    parts: Sequence[Limit],
    found: Findings,
    ranges: Mapping[str, ShapeRange],
) -> InputDomain:
    places: dict[tuple[int, int, int], list[Limit]] = {}
    for limit in parts:
        assert limit.part is not None
        places.setdefault(limit.part, []).append(limit)
    inner = []
    for (axis, start, stop), some in places.items():
        one = _joined(spec, [*limits, *some], found, ranges)
        inner.append(Part(axis=axis, start=start, stop=stop, low=one.low, high=one.high, values=one.values))
    if not inner:
        return _joined(spec, limits, found, ranges)
    outer = _joined(spec, limits, found, ranges) if limits else None
    narrow = _joined(spec, [*limits, *parts], found, ranges)
    texts = "; ".join(_of_part(part) for part in sorted(inner, key=lambda p: (p.axis, p.start)))
    names = ", ".join(dict.fromkeys(limit.text for limit in parts))
    base = outer or narrow
    return InputDomain(
        kind="uniform",
        low=narrow.low,
        high=narrow.high,
        origin=f"{texts}: {names}",
        values=base.values if outer else (),
        parts=tuple(inner),
        strict=True,
    )


def _of_part(part: Part) -> str:
    until = f" to {part.stop - 1}" if part.stop - part.start > 1 else ""
    return f"{int(part.low)}..{int(part.high)} at {part.start}{until} of axis {part.axis}"


def _joined(
    spec: TensorSpec, limits: Sequence[Limit], found: Findings, ranges: Mapping[str, ShapeRange]
) -> InputDomain:
    """Return the values that all `limits` allow."""
    lowest, highest = WHOLE.get(spec.dtype, (-math.inf, math.inf))
    low = max(lowest, *(limit.low for limit in limits))
    fixed = [limit for limit in limits if limit.size is None]
    sized = [limit for limit in limits if limit.size is not None]
    high = min([highest, *(limit.high for limit in fixed), *(limit.high for limit in sized)])
    size, offset = None, 0
    if sized and len({(limit.size, limit.offset) for limit in sized}) == 1:
        one = sized[0]
        assert one.size is not None
        largest = ranges[one.size].max + one.offset if one.size in ranges else math.inf
        if largest <= min([highest, *(limit.high for limit in fixed)]):
            size, offset = one.size, one.offset
    text = ", ".join(dict.fromkeys(limit.text for limit in limits))
    if low > high:
        return InputDomain(kind="uniform", low=0.0, high=0.0, origin=f"0 alone: no value suits {text}")
    special = [v for limit in limits for v in limit.values] + list(found.values)
    until = (
        f"{size}{f' {offset:+d}'.replace('+', '+ ').replace('-', '- ') if offset else ''}" if size else f"{int(high)}"
    )
    end = math.inf if size else high
    return InputDomain(
        kind="uniform",
        low=float(low),
        high=float(high),
        origin=f"{int(low)}..{until}, {text}",
        values=tuple(dict.fromkeys(float(v) for v in (*special, low, high) if low <= v <= end)),
        size=size,
        offset=offset,
        strict=any(limit.strict for limit in limits),
    )


def _uniform(low: int, high: int, origin: str, special: Sequence[float] = ()) -> InputDomain:
    values = dict.fromkeys([*(v for v in special if low <= v <= high), float(low), float(high)])
    return InputDomain(kind="uniform", low=float(low), high=float(high), origin=origin, values=tuple(values))
