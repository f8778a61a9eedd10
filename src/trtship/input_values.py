"""Invented input values: what each input may hold, and seeded draws of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from trtship.spec import Record, TensorSpec

MAX_COVERED = 1 << 20
"""The most whole numbers between `low` and `high` that draws go through one by one; over more, they are independent."""

Kind = Literal["normal", "uniform", "mask"]


class Part(Record, frozen=True):
    """Whole numbers from `low` to `high` at the places `start` to `stop` - 1 of one axis: a column that indexes a table
    of its own. `values` come first, as in `InputDomain`."""

    axis: int
    start: int
    stop: int
    low: float
    high: float
    values: tuple[float, ...] = ()


class InputDomain(Record, frozen=True):
    """The values that one input may hold, and how to draw them.

    1. `normal`: floats from N(0, 1). `low` and `high` are the edges that a check may try, and do not cut the draws.
    2. `uniform`: floats or whole numbers from `low` to `high`, both included. Whole numbers are drawn so that all of
       them come once before one comes twice.
    3. `mask`: ones (`high`) up to a length that differs from row to row, then zeros (`low`), along the last axis. The
       first row is ones alone, the second has a single one.

    `values` come first in each draw, and after them `low` and `high`. The rows of a table with the largest numbers lead
    the values, so that the largest rows of several tables meet in one place, where their sum is largest. Where `size`
    is the letter of a dynamic size, the upper end is that size plus `offset`, and `high` is its value at the least
    size.
    `parts` have ranges of their own; `low` to `high` is then what is right at every place. `strict` says that the model
    fails on other values: they lie outside of a table that it indexes.
    `origin` says where the domain is from, for people. `invented` is False where the user gave the range.
    """

    kind: Kind
    low: float
    high: float
    origin: str
    values: tuple[float, ...] = ()
    size: str | None = None
    offset: int = 0
    invented: bool = True
    parts: tuple[Part, ...] = ()
    strict: bool = False

    def bounds(self, sizes: Mapping[str, int]) -> tuple[float, float]:
        """Return the least and the largest value at these sizes of the dynamic dimensions."""
        high = self.high if self.size is None or self.size not in sizes else float(sizes[self.size] + self.offset)
        return self.low, max(self.low, high)


class TriedInput(Record, frozen=True):
    """What one input held in the checks: `values` in words, and whether trtship invented them."""

    name: str
    values: str
    invented: bool


def is_floating(dtype: str) -> bool:
    """Return whether a dtype of `trtship.spec.DTYPES` is a floating-point one."""
    return dtype.startswith(("float", "bfloat"))


def default_domain(spec: TensorSpec) -> InputDomain:
    """Return the domain of an input of which nothing is known: N(0, 1) for floats, 0 and 1 for other types."""
    if is_floating(spec.dtype):
        return InputDomain(kind="normal", low=-3.0, high=3.0, origin="N(0, 1), invented")
    return InputDomain(kind="uniform", low=0.0, high=1.0, origin="0 and 1, invented")


def random_inputs(
    specs: Sequence[TensorSpec],
    sizes: Mapping[str, int],
    *,
    seed: int = 0,
    domains: Mapping[str, InputDomain] | None = None,
) -> dict[str, Any]:
    """Return an array for each spec, drawn from its domain, or from `default_domain` where it has none.

    Each input has its own stream of numbers, row by row: the first rows of a larger batch are those of a smaller one.

    Args:
        specs: The inputs.
        sizes: The size of each letter in their shapes.
        seed: Equal seeds give equal arrays.
        domains: The domain of each input, by its name.

    Returns:
        Arrays of the shapes and dtypes of `specs`, by name.
    """
    feeds = {}
    for index, spec in enumerate(specs):
        rng = np.random.default_rng([seed, index])
        shape = spec.with_sizes(sizes)
        domain = (domains or {}).get(spec.name)
        if domain is None and not is_floating(spec.dtype):
            feeds[spec.name] = rng.integers(0, 2, size=shape).astype(spec.dtype)
            continue
        feeds[spec.name] = _draw(domain or default_domain(spec), spec, shape, sizes, rng)
    return feeds


def _draw(
    domain: InputDomain, spec: TensorSpec, shape: tuple[int, ...], sizes: Mapping[str, int], rng: np.random.Generator
) -> Any:
    low, high = domain.bounds(sizes)
    if domain.kind == "mask":
        return _mask(shape, low, high, rng).astype(spec.dtype)
    if not is_floating(spec.dtype):
        drawn = _whole_numbers(int(low), int(high), shape, rng, first=(*domain.values, low, high))
        for part in domain.parts:
            place = drawn[(slice(None),) * part.axis + (slice(part.start, part.stop),)]
            place[...] = _whole_numbers(int(part.low), int(part.high), place.shape, rng, first=part.values)
        return drawn.astype(spec.dtype)
    if domain.kind == "normal":
        return rng.standard_normal(shape, dtype=np.float32).astype(spec.dtype)
    floats = low + (high - low) * rng.random(shape)
    first = [v for v in domain.values if low <= v <= high]
    floats.reshape(-1)[: len(first)] = first[: floats.size]
    return np.clip(floats.astype(spec.dtype), low, high).astype(spec.dtype)


def _whole_numbers(
    low: int, high: int, shape: tuple[int, ...], rng: np.random.Generator, *, first: Sequence[float] = ()
) -> Any:
    """Return numbers of `low` to `high`: all of them once, `first` before the others, then all of them again in another
    order, and so on.

    Where a row has fewer places than there are numbers, the first pass is spread: any few rows have numbers of all
    parts of the range.
    """
    count, span = int(np.prod(shape, dtype=np.int64)), high - low + 1
    ahead = np.array(list(dict.fromkeys(int(v) for v in first if low <= v <= high)), dtype=np.int64)
    if span > MAX_COVERED:
        found = rng.integers(low, high, size=count, dtype=np.int64, endpoint=True)
        found[: ahead.size] = ahead[:count]
        return found.reshape(shape)
    found = np.empty(count, dtype=np.int64)
    places = count // shape[0] if shape and shape[0] else count
    for begin in range(0, count, span):
        part = found[begin : begin + span]
        order = low + (_spread_order(span, rng) if begin == 0 and places < span else rng.permutation(span))
        if begin == 0 and ahead.size:
            order = np.concatenate([ahead, order[~np.isin(order, ahead)]])
        part[:] = order[: part.size]
    return found.reshape(shape)


def _spread_order(span: int, rng: np.random.Generator) -> Any:
    """Return 0 to `span` - 1 by their reversed bits (the van der Corput sequence), from a random one on."""
    bits = max(span - 1, 1).bit_length()
    numbers = np.arange(1 << bits)
    backwards = np.zeros_like(numbers)
    for bit in range(bits):
        backwards |= ((numbers >> bit) & 1) << (bits - 1 - bit)
    return (backwards[backwards < span] + rng.integers(span)) % span


def _mask(shape: tuple[int, ...], low: float, high: float, rng: np.random.Generator) -> Any:
    """Return ones with tails of zeros along the last axis; for a shape of one axis, single ones and zeros."""
    rows = shape[0] if shape else 1
    if len(shape) < 2:
        return np.where(rng.integers(0, 2, size=shape) | (np.arange(rows) == 0).reshape(shape or ()), high, low)
    lengths = rng.integers(1, max(shape[-1], 1), size=rows, endpoint=True)
    lengths[:1], lengths[1:2] = shape[-1], 1
    ones = np.arange(shape[-1]) < lengths.reshape(rows, *(1 for _ in shape[1:]))
    return np.broadcast_to(np.where(ones, high, low), shape).copy()
