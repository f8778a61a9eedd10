"""What is known of a tensor that is computed from a graph's inputs, and what an operator asks of their elements."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx_ir

Place = tuple[int, int, int]
"""Axis, start and stop of the part of an input that a form is of."""
Key = tuple[str, Place | None]
Computed = Callable[[Any], Any]
"""From elements of an input, as an array of floats, to those of a tensor."""

SPECIAL_ROWS = 4
"""Rows of a table whose largest numbers are the largest: these are drawn whatever the seed."""


@dataclass(frozen=True)
class Limit:
    """What one operator asks of an input's elements: `low` to `high`. Where `size` is a dynamic size's letter, the end
    is that size plus `offset`, and `high` the end at the least size. `values` are special, `text` says what it is;
    `strict` that other values are an error."""

    low: float
    high: float
    text: str
    size: str | None = None
    offset: int = 0
    values: tuple[float, ...] = ()
    part: Place | None = None
    strict: bool = True


@dataclass
class Findings:
    """What was found of one input: `limits` that its elements must keep, `soft` the range to which the graph clips
    them, `values` with which it compares them, and `signals` that it is a mask."""

    limits: list[Limit] = field(default_factory=list)
    soft: tuple[float, float] | None = None
    values: list[float] = field(default_factory=list)
    signals: set[str] = field(default_factory=set)

    @property
    def is_additive_mask(self) -> bool:
        """Whether the graph adds 1 - x, many times enlarged, to something."""
        return "additive" in self.signals


@dataclass(frozen=True)
class Form:
    """A tensor whose elements are sum(coefficient * element of an input) + a constant from `low` to `high`.

    `floored` says that it was rounded down since, `plain` that it has the input's own shape still, `column` which
    element of the last axis of a concatenation it is. `exact` computes it from elements of its one input, roundings
    included, where that is known, and `unrounded` is that before a division rounded towards zero.
    """

    terms: tuple[tuple[Key, float], ...]
    low: float = 0.0
    high: float = 0.0
    floored: bool = False
    plain: bool = True
    column: int | None = None
    exact: Computed | None = None
    unrounded: Computed | None = None

    def then(self, step: Computed, **changes: Any) -> Form:
        """Return the form changed, its elements by one more step."""
        before = self.exact
        exact = None if before is None else (lambda x: step(before(x)))
        return replace(self, exact=exact, **{"unrounded": None, **changes})


def down(x: Any) -> Any:
    return np.floor(x + CLOSE)


def divided(by: float) -> Computed:
    return lambda x: x / by


def towards_zero(x: Any) -> Any:
    return np.trunc(x + np.copysign(CLOSE, x))


ROUNDINGS: dict[str, Computed] = {"Floor": down, "Ceil": lambda x: np.ceil(x - CLOSE), "Round": np.round}
CLOSE = 1e-9
"""What a quotient of whole numbers may be off by, as a float."""


def name_of_table(data: onnx_ir.Value) -> str:
    is_table = data.const_value is not None and bool(data.name)
    return f"the whole table of {data.name}" if is_table else "all that it indexes"


def special_rows(data: onnx_ir.Value, axis: int) -> tuple[int, ...]:
    """Return the rows of a constant table with the largest magnitudes, and the one with the least."""
    if data.const_value is None or data.is_graph_input():
        return ()
    table = data.const_value.numpy()
    if table.dtype.kind not in "fiu" or not table.size or not -table.ndim <= axis < table.ndim:
        return ()
    rows = np.moveaxis(table, axis, 0).reshape(table.shape[axis], -1)
    size = np.maximum(rows.max(axis=1).astype(np.float64), -rows.min(axis=1).astype(np.float64))
    order = np.argsort(np.where(np.isnan(size), -1.0, size), kind="stable")
    return tuple(int(row) for row in dict.fromkeys([*order[::-1][:SPECIAL_ROWS], order[0]]))
