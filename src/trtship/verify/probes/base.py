"""What a probe is, and what it is given."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import msgspec
import numpy as np

from trtship.measure import Measure, measure
from trtship.progress import SILENT, Progress
from trtship.session.base import Session
from trtship.verify.compare import as_session_takes
from trtship.verify.reference import Reference
from trtship.verify.verdict import Bound, Verdict, judged

Outputs = Mapping[str, Any]


class Attack:
    """One subject under attack: an open session, how to open another, the reference rows, and the sizes to use.

    `batches` are ascending; the probes use the middle one where one is enough. `bound` is that of the comparison with
    the original at the reference's sizes, `pair` that of two runs of this subject with each other. `others` are the
    rows at other sizes that a probe may use beside the reference's.
    """

    def __init__(
        self,
        session: Session,
        open_another: Callable[[], Session],
        reference: Reference,
        *,
        subject: str,
        batches: Sequence[int],
        bound: Bound,
        others: Sequence[Reference] = (),
        progress: Progress = SILENT,
    ) -> None:
        self.session, self.open_another, self.reference = session, open_another, reference
        self.subject, self.bound, self.progress = subject, bound.at(reference.sizes), progress
        self.pair, self.others = self.bound.between_runs(), tuple(others)
        self.batches = tuple(sorted(set(batches)))

    @property
    def batch(self) -> int:
        """The usual one."""
        return self.batches[len(self.batches) // 2]

    @property
    def several(self) -> tuple[int, ...]:
        """The batches of two rows and more, where a row of the inputs makes a row of the outputs."""
        return tuple(b for b in self.batches if b > 1 and self.reference.rowwise)

    def rows(self, order: Iterable[int]) -> dict[str, Any]:
        """Feeds of these rows of the reference, counted round and round. For a model of one fixed shape `order` has
        as many entries as its batch has rows."""
        index = np.asarray(list(order)) % self.reference.rows
        return {name: np.ascontiguousarray(array[index]) for name, array in self.reference.inputs.items()}

    def run(self, feeds: Mapping[str, Any], session: Session | None = None) -> dict[str, Any]:
        """Outputs by name, in `feeds`' order of rows; floating feeds become what the session takes."""
        session = session or self.session
        return session.infer(as_session_takes(session, feeds))

    def compare(self, expected: Outputs, found: Outputs, *, batch: int, **others: int) -> list[Measure]:
        """A measure for each output at this batch, and at the sizes of the reference; `others` tell runs apart."""
        return self.measured(expected, found, self.bound.floors, batch=batch, **others)

    def measured(
        self, expected: Outputs, found: Outputs, floors: Mapping[str, float], *, batch: int, **others: int
    ) -> list[Measure]:
        """As `compare`, where rows count as having at least the size in `floors`."""
        where = {self.reference.batch or "B": batch, **self.reference.sizes, **others}
        return [
            measure(expected[name], found[name], output=name, sizes=where, floor=floors.get(name, 0.0))
            for name in expected
        ]

    def same(self, probe: Probe, measures: Iterable[Measure]) -> Verdict:
        """The verdict on runs that should be the same; what was measured is kept where it failed."""
        return self.judged(probe, measures, bound=self.pair)

    def judged(self, probe: Probe, measures: Iterable[Measure], *, bound: Bound) -> Verdict:
        """The verdict of `probe`: what it claims stands in front of the reason."""
        found = judged(self.subject, probe.name, list(measures), bound=bound, runtime=self.session.runtime)
        found = msgspec.structs.replace(found, bound=msgspec.structs.replace(bound, sizes={}))
        if found.state == "passed":
            return msgspec.structs.replace(found, measures=())
        return msgspec.structs.replace(found, reason=f"{probe.claim}: {found.reason}")


class Probe(ABC):
    """One adversarial check. `name` is the gate's in the verdict, `claim` what does not hold where it fails.

    `of_memory` says that it asks about memory which a session keeps between runs, or shares with another: a plan's
    has such, an onnxruntime session on the CPU has not. `at_other_sizes` says that it is run again at other sizes of
    the dimensions beside the batch, where the model has such, and `of_sizes` that it is about these alone.
    """

    name: ClassVar[str]
    claim: ClassVar[str]
    of_memory: ClassVar[bool] = False
    at_other_sizes: ClassVar[bool] = False
    of_sizes: ClassVar[bool] = False

    @abstractmethod
    def run(self, attack: Attack) -> Verdict | None:
        """The verdict; None where the question has no meaning (one row has no neighbours). A TrtshipError that the
        session raises fails the probe."""


def taken(outputs: Outputs, index: Any) -> dict[str, Any]:
    """These rows of every output."""
    return {name: array[index] for name, array in outputs.items()}
