"""The first tensors at which a suspect leaves the reference, by bisection over few tensors at a time.

To keep every tensor would break fusion and take as much memory as the whole network. Here a run keeps a bounded set;
what it shows narrows the search. A tensor that is right clears all that comes before it on its way; one that is wrong
sends the search to what comes before it. At the end, everything that the guilty nodes read directly is looked at, so
that an error which a normalisation hid on another way is followed further up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from trtship.passes.quantize_places import name_of
from trtship.progress import SILENT, Progress
from trtship.session.base import Array
from trtship.spec import Record
from trtship.verify.locate_blame import blamed
from trtship.verify.locate_compare import Deviation, State, errors, gains
from trtship.verify.locate_graph import Lineage
from trtship.verify.locate_noise import derived_floors, quantization_errors, rounded_to_bfloat16
from trtship.verify.locate_runs import FAILURES, Suspect, run_part

if TYPE_CHECKING:
    import onnx_ir

WIDTH = 8
"""Tensors that one run keeps: a few, so that a plan's fusions stay as they are nearly everywhere."""
MEMORY = 256 * 2**20
"""Bytes of fp32 that the tensors of one run may take."""


class Located(Record, frozen=True):
    """Where the suspect leaves the reference first.

    `tensor` is the first that is off; `nodes` are all that stand between it and the tensors `reads`, which are right
    (or inputs of the graph); `node` and `operator` are the one of them to blame. `looked_at` has every tensor
    that was compared, in the graph's order, of `comparable` ones; `runs` is how often the suspect ran.
    """

    tensor: str
    node: str
    operator: str
    nodes: tuple[str, ...]
    reads: tuple[str, ...]
    deviation: Deviation
    looked_at: tuple[Deviation, ...]
    comparable: int
    runs: int


class Search:
    """One search, on one set of inputs."""

    def __init__(
        self,
        suspect: Suspect,
        reference: onnx_ir.Model,
        feeds: Mapping[str, Array],
        *,
        width: int = WIDTH,
        memory: int = MEMORY,
        progress: Progress = SILENT,
    ) -> None:
        self.suspect, self.reference, self.feeds = suspect, reference, feeds
        self._width, self._memory, self._progress = width, memory, progress
        self.lineage, self._theirs = Lineage(suspect.model), Lineage(reference)
        self._shapes = self._theirs.shapes(feeds)
        self.names = same_tensors(self.lineage, self._theirs)
        self._rounded, self._renamed, self._explained = rounded_to_bfloat16(reference)
        steps = quantization_errors(suspect.model, self._expected)
        self._floors = derived_floors(suspect.model, reference, suspect.precision, steps=steps)
        self.judged: dict[str, Deviation] = {}
        self.runs = 0

    def _expected(self, name: str) -> Array:
        """What the reference has for a tensor of the suspect, which may be one of the graph's inputs."""
        if name not in self.names:
            return next((array for key, array in self.feeds.items() if key == name), np.zeros(1))
        found = self.names[name]
        return run_part(self.reference, [found], self.feeds)[found]

    def locate(self) -> Located | None:
        """None where all outputs are what they should be."""
        outputs = [value.name or "" for value in self.suspect.model.graph.outputs]
        outputs = [name for name in outputs if name in self.names]
        self._judge(outputs)
        wrong = [name for name in outputs if self._is_wrong(name)]
        if not wrong:
            return None
        target = wrong[0]
        while True:
            self._progress.step(self._done(target), f"{len(self.judged)} tensors looked at, now above {target}")
            pool = self._pool(target)
            if pool:
                self._judge(_spread(pool, self._width))
                wrong = [name for name in self._pool(target, judged=True) if self._is_wrong(name)]
            else:
                parents = [name for name in self._region(target)[1] if name in self.names]
                self._judge([name for name in parents if name not in self.judged])
                wrong = [name for name in parents if self._is_wrong(name)]
                if not wrong:
                    return self._result(target)
            target = min(wrong, key=self.lineage.order.__getitem__, default=target)

    def _pool(self, target: str, *, judged: bool = False) -> list[str]:
        """Comparable tensors above the target, and not above one that is right: those not looked at, or those that
        were."""
        above = [name for name in self.names if self.lineage.is_above(name, target)]
        right = [name for name in above if name in self.judged and self.judged[name].state == "same"]
        return [
            name
            for name in above
            if (name in self.judged) is judged
            and not any(name == one or self.lineage.is_above(name, one) for one in right)
        ]

    def _region(self, target: str) -> tuple[list[onnx_ir.Node], list[str]]:
        return self.lineage.region(target, [name for name in self.names if name != target])

    def _result(self, target: str) -> Located:
        nodes, reads = self._region(target)
        guilty = blamed(nodes, self.suspect, self.feeds, ours=self.lineage, theirs=self._theirs)
        return Located(
            tensor=target,
            node=name_of(guilty),
            operator=guilty.op_type,
            nodes=tuple(map(name_of, nodes)),
            reads=tuple(reads),
            deviation=self.judged[target],
            looked_at=tuple(sorted(self.judged.values(), key=lambda one: self.lineage.order[one.tensor])),
            comparable=len(self.names),
            runs=self.runs,
        )

    def _is_wrong(self, name: str) -> bool:
        return self.judged[name].state in ("off", "not finite", "does not run")

    def _done(self, target: str) -> float:
        return 1 - len(self._pool(target)) / max(len(self.names), 1)

    def _judge(self, names: Sequence[str]) -> None:
        for chunk in self._chunks(names):
            self._judge_together(chunk)

    def _chunks(self, names: Sequence[str]) -> Iterator[list[str]]:
        """Sets of tensors within the memory, each of at least one."""
        chunk: list[str] = []
        room = self._memory
        for name in names:
            size = 4 * int(np.prod(self._shapes.get(self.names[name], (1,))))
            if chunk and (size > room or len(chunk) >= self._width):
                yield chunk
                chunk, room = [], self._memory
            chunk.append(name)
            room -= size
        if chunk:
            yield chunk

    def _judge_together(self, names: Sequence[str]) -> None:
        """Run the suspect with these tensors kept; with fewer, where that fails or makes its outputs right."""
        self.runs += 1
        try:
            kept = self.suspect.keep(names, self.feeds)
        except FAILURES:
            state: State = "does not run"
        else:
            if kept.outputs is None or not self.is_right(kept.outputs):
                self._compare(names, kept.values)
                return
            state = "heals"
        if len(names) > 1:
            for half in (names[: len(names) // 2], names[len(names) // 2 :]):
                self._judge_together(half)
        else:
            self.judged[names[0]] = self._deviation(names[0], (), state)

    def is_right(self, outputs: Mapping[str, Array]) -> bool:
        """Whether these outputs of the whole suspect are what they should be."""
        names = [name for name in outputs if name in self.names]
        before = dict(self.judged)
        self._compare(names, outputs)
        right = not any(self._is_wrong(name) for name in names)
        self.judged = before
        return right

    def _compare(self, names: Sequence[str], values: Mapping[str, Array]) -> None:
        theirs = [self.names[name] for name in names]
        expected = run_part(self.reference, list(dict.fromkeys(theirs)), self.feeds)
        inner = {name: self._renamed.get(name, name) for name in theirs}
        rounded = run_part(self._rounded, list(dict.fromkeys(inner.values())), self.feeds)
        for name, their in zip(names, theirs, strict=True):
            self.judged[name] = self._compared(name, values[name], expected[their], rounded[inner[their]])

    def _compared(self, name: str, actual: Array, expected: Array, rounded: Array) -> Deviation:
        their, shape = self.names[name], tuple(actual.shape)
        found = errors(expected, actual)
        if found is None:
            return self._deviation(name, shape, "not finite")
        gain = gains(expected, rounded, self._explained.get(their, 0.0))
        base = self._floors[0].get(name, 0.0) + self._floors[1].get(their, 0.0)
        worst, floor = max(
            ((error, base * factor) for error, factor in zip(found, gain, strict=True)),
            key=lambda one: one[0] / one[1] if one[1] else one[0],
        )
        return self._deviation(name, shape, "off" if worst > floor else "same", worst, floor)

    def _deviation(
        self, name: str, shape: tuple[int, ...], state: State, error: float | None = None, floor: float | None = None
    ) -> Deviation:
        node = self.lineage.makers[name]
        return Deviation(
            tensor=name,
            node=name_of(node),
            operator=node.op_type,
            shape=shape,
            state=state,
            error=error,
            floor=floor,
        )


def same_tensors(ours: Lineage, theirs: Lineage) -> dict[str, str]:
    """The floating tensors of one graph that another has too, and what they are called there."""
    found = {name: theirs_name for name in ours.makers if (theirs_name := ours.name_in(theirs, name))}
    return {name: other for name, other in found.items() if theirs.is_float(other)}


def _spread(names: Sequence[str], count: int) -> list[str]:
    """At most `count` of them, evenly apart."""
    if len(names) <= count:
        return list(names)
    return [names[(index + 1) * len(names) // (count + 1)] for index in range(count)]
