"""How a call's arrays are run: as they are, or in parts that the plan takes and that memory has room for."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

from trtship.errors import GpuMemoryError
from trtship.family import Engine
from trtship.family.profiles import fits, narrowest
from trtship.session.buckets import buckets
from trtship.session.call import Call
from trtship.session.piece import Piece
from trtship.session.split import split_rows, splits_by
from trtship.spec import ShapeRange, SizeRule, TensorSpec

Addresses = tuple[int, ...]
KNOWN = 512
"""Sets of shapes that are remembered."""


class Step(NamedTuple):
    """One run: `rows` rows from row `begin` on."""

    piece: Piece
    begin: int
    rows: int


class Plan:
    """The steps of a call; `natives` are the outputs' dtypes as the caller's package names them, `targets` what
    `Kind.key` says of arrays that were found to fit as the one output."""

    __slots__ = ("_batched", "natives", "piece", "rows", "steps", "targets")

    def __init__(
        self, call: Call, steps: Sequence[Step], batched: Sequence[bool], outputs: Sequence[TensorSpec]
    ) -> None:
        self.steps, self.rows = tuple(steps), call.rows
        self.piece = self.steps[0].piece if len(self.steps) == 1 else None  # where it is run as it is
        self.natives = tuple(call.kind.native(spec.dtype) if call.on_gpu else None for spec in outputs)
        self._batched = tuple(batched)
        self.targets: set[Hashable] = set()

    @property
    def largest(self) -> int:
        return max(step.rows for step in self.steps)

    @property
    def out_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of the whole call; known once each piece is."""
        shapes = self.steps[0].piece.out_shapes
        return shapes if self.piece is not None else tuple((self.rows or 0, *shape[1:]) for shape in shapes)

    def writes_over(self, ins: Addresses, outs: Addresses) -> bool:
        """Whether outputs at these addresses lie over inputs, or over each other."""
        if self.piece is not None:
            in_bytes, out_bytes = self.piece.in_bytes, self.piece.out_bytes
        else:
            steps = [step.piece for step in self.steps]
            every = zip(*(piece.in_bytes for piece in steps), strict=True)
            in_bytes = tuple(sum(b) if moves else b[0] for b, moves in zip(every, self._batched, strict=True))
            out_bytes = tuple(map(sum, zip(*(piece.out_bytes for piece in steps), strict=True)))
        written = list(zip(outs, out_bytes, strict=True))
        others = list(zip(ins, in_bytes, strict=True))
        for at, size in written:
            if any(at < begin + many and begin < at + size for begin, many in others):
                return True
            others.append((at, size))
        return False

    def inputs_of(self, step: Step, ins: Addresses) -> Addresses:
        """Where a step's inputs begin, in those of the whole call."""
        if self.piece is not None:
            return ins
        sizes = zip(ins, step.piece.in_bytes, self._batched, strict=True)
        return tuple(address + (step.begin * (size // step.rows) if moves else 0) for address, size, moves in sizes)

    def outputs_of(self, step: Step, outs: Addresses) -> Addresses:
        if self.piece is not None:
            return outs
        sizes = zip(outs, step.piece.out_bytes, strict=True)
        return tuple(address + step.begin * (size // step.rows) for address, size in sizes)

    def takes_rows(self, index: int) -> bool:
        """Whether an input has a row for each of the batch's."""
        return self._batched[index]


class Plans:
    """The pieces of a session, one object for each set of shapes, and the calls that are made of them."""

    def __init__(
        self,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        ranges: Mapping[str, ShapeRange],
        engine: Engine,
        *,
        graphs: int,
        rules: Sequence[SizeRule] = (),
    ) -> None:
        """`graphs` is how many a context keeps; `rules` are kept to by batches that are rounded up, or run in parts."""
        self._inputs, self._outputs, self._engine = inputs, outputs, engine
        self._letter = splits_by(inputs, outputs, ranges)
        self._limits = ranges[self._letter] if self._letter else None
        self._batched = [bool(spec.shape) and spec.shape[0] == self._letter for spec in inputs]
        self._pieces: dict[tuple[tuple[int, ...], ...], Piece] = {}
        self._lock = threading.Lock()
        self.most = self._limits.max if self._limits else 0
        """Rows that are run at once, at most; fewer than the plan takes, once memory ran out."""
        self._rules = [rule for rule in rules if self._letter in rule.letters]
        sizes = buckets(self._limits, graphs, beside=len(self._own_sizes())) if self._limits else ()
        self._sizes = tuple(size for size in sizes if self._keeps_to_rules(size))
        self._buckets: dict[tuple[tuple[tuple[int, ...], ...], int], Piece] = {}

    def piece(self, shapes: tuple[tuple[int, ...], ...]) -> Piece:
        """Raises InputError for shapes that no profile takes."""
        with self._lock:
            return self._pieces.get(shapes) or self._made(shapes)

    def _made(self, shapes: tuple[tuple[int, ...], ...]) -> Piece:
        profile = narrowest(self._engine.profiles, self._named(shapes))
        fixed = self._engine.is_fixed(profile)
        bucket = None if fixed else self._bucket(shapes, profile)
        if bucket is not None and tuple(bucket.shapes.values()) == shapes:
            made = bucket
        else:
            made = Piece(self._inputs, shapes, profile=profile, fixed=fixed)
            made.bucket = bucket
        if len(self._pieces) >= KNOWN:
            rounded = (at for at, piece in self._pieces.items() if piece.bucket is not None)
            self._pieces.pop(next(rounded, next(iter(self._pieces))))
        self._pieces[shapes] = made
        return made

    def _bucket(self, shapes: tuple[tuple[int, ...], ...], profile: int) -> Piece | None:
        """That of these shapes, of the same profile: another's context would take memory of its own."""
        rows = self._rows(shapes)
        size = next((size for size in self._sizes if rows <= size <= self.most), None)
        larger = shapes if size is None else self._of_rows(size, shapes)
        if size is None or not fits(self._engine.profiles[profile], self._named(larger)):
            return None
        found = self._buckets.get((larger, profile))
        if found is None:
            if len(self._buckets) >= KNOWN:
                self._buckets.pop(next(iter(self._buckets)))
            found = self._buckets[larger, profile] = Piece(self._inputs, larger, profile=profile, fixed=False)
            found.is_bucket = True
        return found

    def _named(self, shapes: tuple[tuple[int, ...], ...]) -> dict[str, tuple[int, ...]]:
        return {spec.name: shape for spec, shape in zip(self._inputs, shapes, strict=True)}

    def _rows(self, shapes: tuple[tuple[int, ...], ...]) -> int:
        """0 where there is no batch."""
        return next((shape[0] for shape, moves in zip(shapes, self._batched, strict=True) if moves), 0)

    def _of_rows(self, rows: int, shapes: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
        """The same shapes for another batch."""
        both = zip(shapes, self._batched, strict=True)
        return tuple((rows, *shape[1:]) if moves else shape for shape, moves in both)

    @property
    def rounds(self) -> bool:
        """Whether batches are rounded up."""
        return bool(self._sizes)

    def plan(self, call: Call) -> Plan:
        """Raises InputError for shapes that no profile takes."""
        parts = call.parts
        if self._limits is not None and call.rows is not None and max(parts) > self.most:
            limits = ShapeRange(min=self._limits.min, opt=self.most, max=self.most)
            smaller = split_rows(call.rows, limits)
            parts = smaller if smaller and all(map(self._keeps_to_rules, smaller)) else parts
        steps, begin = [], 0
        for rows in parts:
            shapes = call.shapes if len(parts) == 1 else self._of_rows(rows, call.shapes)
            steps.append(Step(self.piece(shapes), begin, rows))
            begin += rows
        return Plan(call, steps, self._batched, self._outputs)

    def smaller(self, call: Call, plan: Plan, error: GpuMemoryError) -> Plan:
        """The next smaller parts: those of a size that the plan has kernels of its own for, else halves. Raises `error`
        where there are none."""
        rows = plan.largest
        if self._limits is None or call.rows is None or rows <= self._limits.min:
            raise error
        own = [size for size in self._own_sizes() if self._limits.min <= size < rows]
        most = max(own) if own else max(rows // 2, self._limits.min)
        with self._lock:
            self.most = min(self.most, most)
            for piece in self._pieces.values():  # what was too large is not what others are rounded up to
                if piece.bucket is not None and self._rows(tuple(piece.bucket.shapes.values())) > self.most:
                    piece.bucket = None
        found = self.plan(call)
        if found.largest >= rows:  # no parts of that size add up
            raise error
        return found

    def _keeps_to_rules(self, rows: int) -> bool:
        """Whether this batch keeps to every rule, whatever the other sizes are."""
        return all(rule.letters == {self._letter} and rule.allows({str(self._letter): rows}) for rule in self._rules)

    def _own_sizes(self) -> list[int]:
        """Batches for which there is a profile of one size."""
        name = self._inputs[0].name
        profiles = self._engine.profiles
        return [profiles[i][name][0][0] for i in range(len(profiles)) if self._engine.is_fixed(i)]
