"""Follow the elements of a graph's inputs to the operators that tell what values they may have."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from trtship.input_values import MAX_COVERED, is_floating
from trtship.passes.input_forms import (
    ROUNDINGS,
    Findings,
    Form,
    Limit,
    Place,
    divided,
    down,
    name_of_table,
    special_rows,
    towards_zero,
)
from trtship.passes.known import Known
from trtship.spec import ShapeRange, TensorSpec

if TYPE_CHECKING:
    import onnx_ir

MOVES = frozenset(
    {"Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Expand", "Tile", "Transpose", "Dropout", "Pad",
     "ReduceMax", "ReduceMin", "CastLike", "Compress", "DepthToSpace", "SpaceToDepth"}
)  # fmt: skip
ORDERS = frozenset({"Less", "Greater", "LessOrEqual", "GreaterOrEqual"})
ADDITIVE = 100.0
"""Multiplied by so much or more, 1 - mask is added to scores to hide what is masked: -1e4, -1e9."""


def follow(model: onnx_ir.Model, inputs: Sequence[TensorSpec], ranges: Mapping[str, ShapeRange]) -> dict[str, Findings]:
    """Return what the graph tells of each of `inputs`, by name."""
    return _Flow(model, inputs, ranges).run()


class _Flow:
    def __init__(self, model: onnx_ir.Model, inputs: Sequence[TensorSpec], ranges: Mapping[str, ShapeRange]) -> None:
        letters = dict.fromkeys(
            str(size.value)
            for value in model.graph.inputs
            for size in value.shape or ()
            if not isinstance(size, int) and size.value is not None
        )
        self._ranges = ranges
        self._small = {letter: ranges[letter].min if letter in ranges else 2 for letter in letters}
        self._large = {
            letter: (ranges[letter].max if letter in ranges and ranges[letter].max > low else low + 1 + place)
            for place, (letter, low) in enumerate(self._small.items())
        }
        self._least, self._most = Known(model, self._small), Known(model, self._large)
        self._model = model
        self._specs = {spec.name: spec for spec in inputs}
        self._found = {spec.name: Findings() for spec in inputs}
        self._forms: dict[onnx_ir.Value, tuple[Form, ...]] = {}
        self._listed: dict[onnx_ir.Value, tuple[str, Any, Any]] = {}

    def run(self) -> dict[str, Findings]:
        for value in self._model.graph.inputs:
            if value.name in self._specs:
                self._forms[value] = (Form(terms=(((value.name, None), 1.0),), exact=lambda x: x),)
        self._walk(self._model.graph)
        for findings in self._found.values():  # x * mask, and sum(mask): a mean over what is not masked
            if not {"factor", "sum"} <= findings.signals:
                findings.signals -= {"factor", "sum"}
        return self._found

    def _walk(self, nodes: Any) -> None:
        for node in nodes:
            for attribute in node.attributes.values():
                if attribute.type.name == "GRAPH":
                    self._walk(attribute.as_graph())
            if any(value in self._forms for value in node.inputs if value is not None):
                self._visit(node)
            self._list(node)

    def _visit(self, node: onnx_ir.Node) -> None:
        self._read(node)
        made = tuple(self._made(node))
        if made:
            for output in node.outputs:
                self._forms[output] = made

    def _list(self, node: onnx_ir.Node) -> None:
        """Note which id gives which number behind a remainder, `ids % 50`, and behind a table of integers, and draw the
        ids that select the special rows of a table there.

        Neither is a linear form. Any id has a remainder, so the table limits nothing.
        """
        first = node.inputs[0] if node.inputs else None
        if node.op_type == "Mod":
            divisor = self._number(node.inputs[1])
            for form in self._single(first):
                if divisor and divisor >= 1 and form.exact is not None and 2 * divisor <= MAX_COVERED:
                    ids = np.arange(2 * int(divisor))
                    self._listed[node.outputs[0]] = self._name(form), ids, np.mod(form.exact(ids * 1.0), divisor)
        elif first in self._listed and node.op_type in (*MOVES, "Cast"):
            self._listed.update(dict.fromkeys(node.outputs, self._listed[first]))
        elif node.op_type in ("Gather", "GatherElements") and first is not None:
            if node.inputs[1] in self._listed:
                name, ids, numbers = self._listed[node.inputs[1]]
                for row in special_rows(first, node.attributes.get_int("axis", 0)):
                    self._found[name].values += [float(one) for one in ids[numbers == row][:1]]
            table = self._least.data(first) if node.inputs[1] in self._forms else None
            if table is not None and table.ndim == 1 and table.dtype.kind in "iu":
                for form in self._single(node.inputs[1]):
                    low, high, rows = self._within(form, form.terms[0][1], 0, len(table))
                    if rows is not None:
                        ids = np.arange(int(low), int(high) + 1)
                        self._listed[node.outputs[0]] = self._name(form), ids, table[rows.astype(np.int64)]

    @staticmethod
    def _name(form: Form) -> str:
        return form.terms[0][0][0]

    # what an operator tells of its inputs

    def _read(self, node: onnx_ir.Node) -> None:
        kind, inputs = node.op_type, node.inputs
        axis = node.attributes.get_int("axis", 0)
        if kind == "Gather" or kind in ("GatherElements", "ScatterElements", "Scatter"):
            self._indexes(inputs[1], inputs[0], axis)
        elif kind in ("GatherND", "ScatterND"):
            self._indexes_many(inputs[1], inputs[0], node.attributes.get_int("batch_dims", 0))
        elif kind == "OneHot":
            depth = self._number(inputs[1])
            self._end(inputs[0], depth, depth, "the depth of a one-hot")
        elif kind == "RoiAlign":
            self._indexes(inputs[2], inputs[0], 0)
        elif kind == "ReverseSequence":
            self._lengths(inputs[1], *self._sizes(inputs[0], node.attributes.get_int("time_axis", 0)))
        elif kind in ("LSTM", "GRU", "RNN") and len(inputs) > 4 and inputs[4] is not None:
            self._lengths(inputs[4], *self._sizes(inputs[0], 0))
        elif kind == "Equal" or kind in ORDERS:
            self._compared(node)
        elif kind in ("Where", "And", "Or", "Not", "Xor"):
            for value in inputs[:1] if kind == "Where" else inputs:
                self._signal(value, "condition")
        elif kind == "Cast" and node.attributes.get_int("to", 0) == 9:  # BOOL
            self._signal(inputs[0], "condition")
        elif kind == "CumSum":
            self._signal(inputs[0], "positions")
        elif kind in ("ReduceSum", "ReduceMean"):
            self._signal(inputs[0], "sum")
        elif kind == "Mul":
            self._multiplied(node)
        elif kind == "Clip" or kind in ("Min", "Max"):
            self._clipped(node)
        elif kind == "Mod":
            divisor = self._number(inputs[1]) or 0.0
            if divisor:
                self._softly(inputs[0], 0.0, 2.0 * divisor - 1)
            for form in self._single(inputs[0]):
                if form.terms[0][1].is_integer() and divisor > 1:  # (7 * ids + 3) % 50: ids to 99 have every remainder
                    self._found[self._name(form)].soft = 0.0, 2.0 * int(divisor) - 1

    def _indexes(self, indices: onnx_ir.Value | None, data: onnx_ir.Value | None, axis: int) -> None:
        if indices not in self._forms or data is None:
            return
        rows = special_rows(data, axis) if any(True for _ in self._single(indices)) else ()
        name = name_of_table(data)
        self._end(indices, *self._sizes(data, axis), name, rows)

    def _indexes_many(self, indices: onnx_ir.Value | None, data: onnx_ir.Value | None, batch: int) -> None:
        """The last axis of `indices` has one index for each of the first axes of `data`."""
        if indices not in self._forms or data is None:
            return
        last = self._least.shape(indices)
        count = last[-1] if last else 1
        name = name_of_table(data)
        for form in self._forms[indices]:
            columns = [form.column] if form.column is not None else range(count)
            ends = [self._sizes(data, batch + column) for column in columns]
            low = min((least for least, _ in ends if least is not None), default=None)
            high = min((most for _, most in ends if most is not None), default=None)
            self._limit(form, low, high if len(ends) == 1 else low, name)

    def _compared(self, node: onnx_ir.Node) -> None:
        for value, other in (node.inputs, node.inputs[::-1]):
            if value not in self._forms or other in self._forms:
                continue
            least, most = self._least.data(other), self._most.data(other)
            if least is None or most is None or least.dtype.kind not in "iuf" or not least.size:
                continue
            if least.size == 1 and most.size == 1:
                self._compared_with(value, float(least.reshape(-1)[0]))
            elif self._is_range(least):
                ends = float(least.max()) + 1, float(most.max()) + 1
                if node.op_type == "Equal":
                    self._end(value, *ends, "the positions that it is compared with")
                else:
                    self._lengths(value, *ends)

    def _compared_with(self, value: onnx_ir.Value, number: float) -> None:
        for form in self._forms[value]:
            for (name, _), coefficient in form.terms[:1]:
                special = (number - form.low) / coefficient
                if special in (0.0, 0.5, 1.0) and not is_floating(self._specs[name].dtype):
                    self._found[name].signals.add("condition")
                elif float(special).is_integer():
                    self._found[name].values += [special - 1, special, special + 1]

    @staticmethod
    def _is_range(array: Any) -> bool:
        flat = np.sort(array.reshape(-1))
        return bool(flat.size > 1 and np.all(np.diff(flat) == 1))

    def _multiplied(self, node: onnx_ir.Node) -> None:
        for value, other in (node.inputs, node.inputs[::-1]):
            if value not in self._forms:
                continue
            number = self._number(other)
            for form in self._forms[value]:
                for (name, _), coefficient in form.terms[:1]:
                    inverted = abs(coefficient) == 1 and abs(form.low) == 1 and form.low == form.high
                    if number is None and self._interval(other) is None:
                        self._found[name].signals.add("factor")
                    elif number is not None and inverted and abs(number) >= ADDITIVE:
                        self._found[name].signals |= {"additive"}

    def _clipped(self, node: onnx_ir.Node) -> None:
        low = high = None
        if node.op_type == "Clip":
            low, high = (self._number(v) for v in (*node.inputs[1:3], None, None)[:2])
        for value in node.inputs:
            if value in self._forms and low is not None and high is not None and low < high:
                self._softly(value, low, high)

    def _softly(self, value: onnx_ir.Value | None, low: float, high: float) -> None:
        for form in self._single(value):
            (name, _), coefficient = form.terms[0]
            ends = sorted((end - form.low) / coefficient for end in (low, high))
            if all(math.isfinite(end) for end in ends):
                self._found[name].soft = math.ceil(ends[0]), math.floor(ends[1])

    def _signal(self, value: onnx_ir.Value | None, what: str) -> None:
        for form in self._forms.get(value, ()) if value is not None else ():
            for (name, _), _ in form.terms:
                self._found[name].signals.add(what)

    def _lengths(self, value: onnx_ir.Value | None, least: float | None, most: float | None) -> None:
        """The elements are 1 to an end, which is `least` at the least sizes, and `most` at the largest."""
        if least is not None and most is not None:
            self._end(value, least + 1, most + 1, "lengths", first=1)

    def _end(
        self,
        value: onnx_ir.Value | None,
        least: float | None,
        most: float | None,
        text: str,
        rows: Sequence[int] = (),
        *,
        first: int = 0,
    ) -> None:
        """The elements are `first` to an end, not included."""
        for form in self._forms.get(value, ()) if value is not None else ():
            self._limit(form, least, most, text, rows, first=first)

    def _limit(
        self,
        form: Form,
        least: float | None,
        most: float | None,
        text: str,
        rows: Sequence[int] = (),
        *,
        first: int = 0,
    ) -> None:
        if least is None or least < 1:
            return
        if len(form.terms) > 1:
            self._limit_several(form, least, text)
            return
        (name, part), c = form.terms[0]
        size, offset = self._letter(least, most)
        low, high, reached = self._within(form, c, first, least)
        if size is not None:
            whole = c == 1 and not form.floored and form.low == form.high
            if whole:
                offset = offset - 1 - int(form.high)
                lowest = self._ranges[size].min if size in self._ranges else 1
                high = max(low, lowest + offset)
            else:
                size = None
        special = [(row - form.low) / c for row in rows] if form.low == form.high else []
        if reached is not None:
            special = [low + int(np.argmax(reached == row)) for row in rows if (reached == row).any()]
        self._found[name].limits.append(
            Limit(
                low=low,
                high=high,
                text=text,
                size=size,
                offset=offset if size else 0,
                values=tuple(v for v in special if float(v).is_integer()),
                part=part,
                strict=not first,
            )
        )

    @staticmethod
    def _within(form: Form, c: float, first: int, end: float) -> tuple[float, float, Any]:
        """The integers x whose form is in first <= form < end, whatever its constant is, from the least to the largest;
        and what becomes of each, where it is known."""
        low, high = (
            sorted(((first - form.low) / c, (end - 1 - form.high) / c))
            if form.low == form.high
            else (
                ((first - form.low) / c, (end - 1 - form.high) / c)
                if c > 0
                else ((end - 1 - form.high) / c, (first - form.low) / c)
            )
        )
        low, high = math.ceil(low), math.floor(high)
        slack = math.ceil(4 / abs(c)) + 4
        begin, stop = min(low, high) - slack, max(low, high) + slack + 1
        if form.exact is None or stop - begin > MAX_COVERED * 4:
            return low, high, None
        tried = np.arange(begin, stop)
        found = form.exact(tried.astype(np.float64))
        fits = (found >= first) & (found < end)
        edges = np.flatnonzero(np.diff(np.concatenate([[False], fits, [False]])))
        if not len(edges):
            return low, high, None
        starts, ends = edges[::2], edges[1::2]
        place = int(np.argmax(ends - starts))
        run = slice(int(starts[place]), int(ends[place]))
        return int(tried[run][0]), int(tried[run][-1]), found[run]

    def _limit_several(self, form: Form, end: float, text: str) -> None:
        """The digits of an index: in 30 * a + b, b is 0 to 29."""
        terms = sorted(form.terms, key=lambda term: -term[1])
        room = end - 1 - form.high
        if terms[-1][1] <= 0 or room < 0:
            for (name, part), _ in terms:
                self._found[name].limits.append(Limit(0, 0, text, part=part))
            return
        ratios = [before[1] / after[1] for before, after in itertools.pairwise(terms)]
        if any(ratio < 2 for ratio in ratios):
            highs = [math.floor(room / sum(c for _, c in terms))] * len(terms)
        else:
            rest = [math.floor(ratio) - 1 for ratio in ratios]
            left = room - sum(high * c for high, (_, c) in zip(rest, terms[1:], strict=True))
            highs = [math.floor(left / terms[0][1]), *rest]
        for ((name, part), _), high in zip(terms, highs, strict=True):
            self._found[name].limits.append(Limit(0, max(0, high), text, part=part))

    def _letter(self, least: float, most: float | None) -> tuple[str | None, int]:
        """The dynamic size that an end moves with, and their difference; None for one that is fixed, or not told."""
        if most is None or most == least:
            return None, 0
        moving = [k for k in self._small if self._large[k] - self._small[k] == most - least]
        return (moving[0], int(least - self._small[moving[0]])) if len(moving) == 1 else (None, 0)

    # what an operator makes of its inputs

    def _made(self, node: onnx_ir.Node) -> Iterator[Form]:
        kind, inputs = node.op_type, node.inputs
        first = inputs[0] if inputs else None
        if kind in MOVES:
            plain = kind in ("Identity", "CastLike", "Dropout")
            for form in self._of(first):
                yield replace(form, plain=form.plain and plain, column=form.column if plain else None)
        elif kind == "Cast":
            whole = node.attributes.get_int("to", 0) in (2, 3, 4, 5, 6, 7, 12, 13)
            for form in self._of(first):
                is_whole = float(form.low).is_integer() and all(float(c).is_integer() for _, c in form.terms)
                yield form.then(towards_zero, floored=True) if whole and not is_whole else form
        elif kind in ("Floor", "Ceil", "Round", "Relu", "Clip", "Min", "Max", "Abs", "Trilu"):
            for value in inputs if kind in ("Min", "Max") else inputs[:1]:
                rounded = ROUNDINGS.get(kind)
                yield from (f if rounded is None else f.then(rounded, floored=True) for f in self._of(value))
        elif kind == "Neg":
            yield from (self._scaled(form, -1.0) for form in self._of(first))
        elif kind == "Not":
            for f in self._of(first):
                yield self._scaled(f, -1.0).then(lambda x: 1 + x, low=1 - f.high, high=1 - f.low)
        elif kind in ("Add", "Sub"):
            yield from self._sums(node)
        elif kind in ("Mul", "Div"):
            yield from self._products(node)
        elif kind == "Where":
            yield from self._chosen(node)
        elif kind == "Concat":
            yield from self._concatenated(node)
        elif kind in ("Gather", "Slice", "Split", "GatherElements", "GatherND"):
            yield from self._cut(node)

    def _of(self, value: onnx_ir.Value | None) -> tuple[Form, ...]:
        return self._forms.get(value, ()) if value is not None else ()

    def _single(self, value: onnx_ir.Value | None) -> Iterator[Form]:
        """Forms of one input, whose constant is known."""
        for form in self._of(value):
            if len(form.terms) == 1 and form.low == form.high and form.terms[0][1]:
                yield form

    def _interval(self, value: onnx_ir.Value | None) -> tuple[float, float] | None:
        """The least and the largest of a tensor's elements, where they do not depend on the inputs."""
        arrays = [known.data(value) for known in (self._least, self._most)]
        if any(a is None or a.dtype.kind not in "iufb" or not a.size for a in arrays):
            return None
        low, high = float(min(a.min() for a in arrays)), float(max(a.max() for a in arrays))  # type: ignore[union-attr]
        return (low, high) if math.isfinite(low) and math.isfinite(high) else None

    def _number(self, value: onnx_ir.Value | None) -> float | None:
        found = self._interval(value) if value is not None else None
        return found[0] if found is not None and found[0] == found[1] else None

    def _sizes(self, value: onnx_ir.Value | None, axis: int) -> tuple[float | None, float | None]:
        """The size of one axis, at the least sizes and at the largest."""
        shapes = [known.shape(value) for known in (self._least, self._most)]
        fits = [None if s is None or not -len(s) <= axis < len(s) else float(s[axis]) for s in shapes]
        return fits[0], fits[1]

    @staticmethod
    def _scaled(form: Form, by: float) -> Form:
        ends = sorted((form.low * by, form.high * by))
        terms = tuple((k, c * by) for k, c in form.terms)
        return form.then(lambda x: x * by, terms=terms, low=ends[0], high=ends[1])

    def _sums(self, node: onnx_ir.Node) -> Iterator[Form]:
        sign = -1.0 if node.op_type == "Sub" else 1.0
        ours, theirs = self._of(node.inputs[0]), [self._scaled(f, sign) for f in self._of(node.inputs[1])]
        if ours and theirs:
            for one in ours:
                for other in theirs:
                    terms = dict(one.terms)
                    for key, c in other.terms:
                        terms[key] = terms.get(key, 0.0) + c
                    kept = tuple((key, c) for key, c in terms.items() if c)
                    if kept:
                        yield Form(kept, one.low + other.low, one.high + other.high, plain=False)
            return
        constant = self._interval(node.inputs[1] if ours else node.inputs[0])
        if constant is None:
            return
        low, high = sorted((constant[0] * (sign if ours else 1.0), constant[1] * (sign if ours else 1.0)))
        for form in ours or theirs:
            made = form.then(lambda x: x + low, low=form.low + low, high=form.high + high)
            yield made if low == high else replace(made, exact=None)

    def _products(self, node: onnx_ir.Node) -> Iterator[Form]:
        left, right = node.inputs
        for value, other in ((left, right), (right, left)) if node.op_type == "Mul" else ((left, right),):
            number = self._number(other)
            if not number or value not in self._forms:
                continue
            for form in self._forms[value]:
                if node.op_type == "Mul":
                    yield self._scaled(form, number)
                else:
                    dtype = self._least.dtype(node.outputs[0])
                    whole = dtype is not None and dtype.kind in "iu"
                    exact = form.then(divided(number)).exact
                    made = replace(self._scaled(form, 1 / number), exact=exact)
                    yield made.then(towards_zero, floored=True, unrounded=exact) if whole else made

    def _chosen(self, node: onnx_ir.Node) -> Iterator[Form]:
        """Either branch; of two branches that differ by a constant, one.

        Of `x < 0 ? x + n : x`, which allows negative indices, it is x. Of `r < 0 ? q - 1 : q`, which makes a division
        that rounds towards zero round down, it is q, rounded down.
        """
        best: dict[Any, Form] = {}
        for value in node.inputs[1:3]:
            for form in self._of(value):
                before = best.get(form.terms)
                if before is None:
                    best[form.terms] = form
                elif abs(form.high - before.high) == 1 and (form.floored or before.floored):
                    larger = max(form, before, key=lambda one: one.high)
                    rounded = None if larger.unrounded is None else replace(larger, exact=larger.unrounded).then(down)
                    best[form.terms] = larger if rounded is None else rounded
                elif abs(form.high) < abs(before.high):
                    best[form.terms] = form
        yield from best.values()

    def _concatenated(self, node: onnx_ir.Node) -> Iterator[Form]:
        begin: int | None = 0
        for value in node.inputs:
            shape = self._least.shape(value) if value is not None else None
            is_last = shape is not None and node.attributes.get_int("axis", 0) in (-1, len(shape) - 1)
            alone = begin if is_last and shape is not None and shape[-1] == 1 else None
            yield from (replace(form, plain=False, column=alone) for form in self._of(value))
            begin = begin + shape[-1] if begin is not None and is_last and shape is not None else None

    def _cut(self, node: onnx_ir.Node) -> Iterator[Form]:
        """A part of the first input. Where it is a part of an axis, its forms are of that part alone."""
        place = self._part_of(node)
        for form in self._of(node.inputs[0]):
            if place is not None and form.plain and len(form.terms) == 1 and form.terms[0][0][1] is None:
                (name, _), c = form.terms[0]
                axis, start, stop = place
                size = self._specs[name].shape[axis] if axis < len(self._specs[name].shape) else None
                if isinstance(size, int) and axis > 0 and 0 <= start < stop <= size and stop - start < size:
                    yield replace(form, terms=(((name, place), c),), plain=False)
                    continue
            yield replace(form, plain=False, column=None)

    def _part_of(self, node: onnx_ir.Node) -> Place | None:
        shape = self._least.shape(node.inputs[0])
        if shape is None or node.op_type not in ("Gather", "Slice"):
            return None
        if node.op_type == "Gather":
            axis, index = node.attributes.get_int("axis", 0), self._number(node.inputs[1])
            axis += len(shape) if axis < 0 else 0
            if index is None or axis >= len(shape):
                return None
            start = int(index) + (shape[axis] if index < 0 else 0)
            return axis, start, start + 1
        rest = [self._least.data(v) for v in node.inputs[1:5]]
        if len(rest) < 3 or any(r is None or r.size != 1 for r in rest):
            return None
        start, stop, axis, step = (int(r.reshape(-1)[0]) for r in (*rest, np.ones(1))[:4])  # type: ignore[union-attr]
        axis += len(shape) if axis < 0 else 0
        if step != 1 or axis >= len(shape):
            return None
        start, stop = (min(max(v + shape[axis] if v < 0 else v, 0), shape[axis]) for v in (start, stop))
        return axis, start, stop
