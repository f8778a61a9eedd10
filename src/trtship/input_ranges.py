"""Ranges of input values that a user gives for want of real inputs: `--input-range NAME=LOW:HIGH`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import msgspec
import numpy as np

from trtship.errors import SpecError
from trtship.input_values import InputDomain, TriedInput, default_domain, is_floating
from trtship.spec import TensorSpec

OPTION = "--input-range"
InputRanges = Mapping[str, tuple[float, float]]
"""The least and the largest value of an input, by its name."""


def parse_input_ranges(texts: Iterable[str]) -> dict[str, tuple[float, float]]:
    """Return `["t=0:999"]` as `{"t": (0.0, 999.0)}`.

    Raises:
        SpecError: A text is malformed, an end is not finite, LOW is above HIGH, or a name is given twice.
    """
    found: dict[str, tuple[float, float]] = {}
    for text in texts:
        name, equals, ends = text.rpartition("=")
        parts = ends.split(":")
        try:
            numbers = [float(part) for part in parts]
        except ValueError:
            numbers = []
        if not name or not equals or len(numbers) != 2:
            raise SpecError(
                f"{OPTION} {text!r} is not a range",
                why="it takes NAME=LOW:HIGH, an input's name and two numbers",
                do=f"for example {OPTION} t=0:999",
            )
        low, high = numbers
        if not (math.isfinite(low) and math.isfinite(high)):
            raise SpecError(f"{OPTION} {text!r} is not finite", why="values are drawn from it", do="give two numbers")
        if low > high:
            raise SpecError(
                f"{OPTION} {text!r} is not a range", why=f"LOW is {low:g}, above HIGH, {high:g}", do="swap the two"
            )
        if name in found:
            raise SpecError(f"{OPTION} {name}=... was given more than once", why="one range per input", do="keep one")
        found[name] = low, high
    return found


def check_input_ranges(given: InputRanges, inputs: Sequence[TensorSpec]) -> None:
    """Raise SpecError for a range of an input that the model does not have, or that its dtype cannot hold."""
    specs = {spec.name: spec for spec in inputs}
    for name, (low, high) in given.items():
        text = f"{OPTION} {name}={low:g}:{high:g}"
        if name not in specs:
            raise SpecError(
                f"{text}: the model has no input {name!r}",
                why=f"the inputs are {', '.join(map(str, inputs))}",
                do="name one of them",
            )
        dtype = specs[name].dtype
        least, most = _limits(dtype)
        if low < least or high > most:
            raise SpecError(
                f"{text} does not fit the input's dtype, {dtype}",
                why=f"it holds {least:g} to {most:g}",
                do="give a range inside of it",
            )
        if not is_floating(dtype) and not (float(low).is_integer() and float(high).is_integer()):
            raise SpecError(
                f"{text} does not fit the input's dtype, {dtype}", why="it holds whole numbers", do="round the two ends"
            )


def example_domains(inputs: Sequence[TensorSpec], given: InputRanges) -> dict[str, InputDomain]:
    """Return what is drawn before a graph tells what fits: the user's range for numbers, and its two least values for
    integers, which may be ids. What the graph cannot look up is refused once it is there (`with_input_ranges`).

    Raises:
        SpecError: As `check_input_ranges`.
    """
    found = with_input_ranges({}, inputs, given)
    for name, (low, high) in given.items():
        if not is_floating(_dtype(inputs, name)):
            least = min(low + 1, high)
            found[name] = msgspec.structs.replace(found[name], high=least, values=(low, least))
    return found


def with_input_ranges(
    domains: Mapping[str, InputDomain], inputs: Sequence[TensorSpec], given: InputRanges
) -> dict[str, InputDomain]:
    """Return the domains with the ranges that the user gave in their place.

    Raises:
        SpecError: As `check_input_ranges`; or a range reaches beyond a table that the graph indexes.
    """
    check_input_ranges(given, inputs)
    found = {spec.name: domains.get(spec.name) or default_domain(spec) for spec in inputs}
    for name, (low, high) in given.items():
        before = found[name]
        if before.strict and before.size is None and (low < before.low or high > before.high):
            raise SpecError(
                f"{OPTION} {name}={low:g}:{high:g} reaches beyond what the model can look up",
                why=f"its graph takes {before.origin}",
                do=f"give a range from {before.low:g} to {before.high:g}",
            )
        special = [v for v in before.values if low <= v <= high and not is_floating(_dtype(inputs, name))]
        found[name] = InputDomain(
            kind="uniform",
            low=low,
            high=high,
            origin=f"{low:g}..{high:g}, given by {OPTION}",
            values=tuple(dict.fromkeys([*special, low, high])),
            invented=False,
            strict=before.strict,
        )
    return found


def tried_inputs(
    inputs: Sequence[TensorSpec], domains: Mapping[str, InputDomain], *, real: str = ""
) -> tuple[TriedInput, ...]:
    """Return what is told of each input: the user's rows, `real` in words, and the domain that further rows are of."""
    found = []
    for spec in inputs:
        domain = domains.get(spec.name) or default_domain(spec)
        values = f"{real}; further rows: {domain.origin}" if real else domain.origin
        found.append(TriedInput(name=spec.name, values=values, invented=domain.invented and not real))
    return tuple(found)


def _dtype(inputs: Sequence[TensorSpec], name: str) -> str:
    return next(spec.dtype for spec in inputs if spec.name == name)


def _limits(dtype: str) -> tuple[float, float]:
    if dtype == "bool":
        return 0.0, 1.0
    if dtype == "bfloat16":
        return -3.3895e38, 3.3895e38
    info = np.finfo(dtype) if is_floating(dtype) else np.iinfo(dtype)
    return float(info.min), float(info.max)
