"""Compare a session with the reference at the profile's sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from trtship.errors import TrtshipError
from trtship.measure import Measure, measure
from trtship.progress import SILENT, Progress
from trtship.session.base import Session
from trtship.spec import ShapeRange
from trtship.verify.reference import Reference
from trtship.verify.sizes import Allowed, any_size, batches_at, elements, in_words, left_out_in_words
from trtship.verify.verdict import REL_L2, Bound, Verdict, judged

ON_CPU, ON_GPU = 2**22, 2**26
"""Elements of the inputs of one run at other sizes than the usual ones, at most (16 and 256 MiB of fp32). A larger
batch is run at a smaller size. Batches that are run at the usual sizes are run as they are."""


def compare(
    session: Session,
    reference: Reference,
    *,
    subject: str,
    batches: Sequence[int],
    bound: Bound,
    gate: str = REL_L2,
    ranges: Mapping[str, ShapeRange] | None = None,
    allowed: Allowed = any_size,
    most: int = ON_CPU,
    progress: Progress = SILENT,
) -> Verdict:
    """Run the reference rows at each batch size, and those at other sizes at some.

    The gate passes when every output is finite and within the bound at its sizes (relative L2 of the worst row). Where
    a session's later runs go another way than its first (`Session.steady_after`), all are measured, and the one that is
    furthest off is told. A session that raises fails the gate: it would fail its user as well.

    Args:
        session: What is compared.
        reference: The original's rows.
        subject: Its name in the verdict.
        batches: The batches at the usual sizes.
        bound: The largest error.
        gate: The gate's name in the verdict.
        ranges: The range of each letter; None for the usual sizes alone.
        allowed: The model's own rules on its sizes, the batch's among them. What they refuse is not run.
        most: Elements of the inputs of one run at the other sizes.
        progress: Is told of each run.
    """
    measures: list[Measure] = []
    runs = list(_runs(reference, batches, ranges, allowed, most))
    for index, (case, batch) in enumerate(runs):
        sizes = {case.batch: batch, **case.sizes, case.batch: batch} if case.batch else case.sizes
        progress.step(index / len(runs), in_words(sizes))
        feeds, expected = case.at(batch)
        try:
            taken = as_session_takes(session, feeds)
            answers = [session.infer(taken) for _ in range(1 + session.steady_after)]
        except TrtshipError as error:
            return Verdict(
                subject=subject,
                gate=gate,
                state="failed",
                reason=f"it could not run at {in_words(sizes)}: {error.what} ({error.why})",
                runtime=session.runtime,
                bound=bound,
                measures=tuple(measures),
            )
        for name in expected:
            floor = bound.at(sizes).floors.get(name, 0.0)
            found = [measure(expected[name], one[name], output=name, sizes=sizes, floor=floor) for one in answers]
            measures.append(max(found, key=lambda one: (not one.finite, one.rel_l2 or 0.0)))
    verdict = judged(subject, gate, measures, bound=bound, runtime=session.runtime)
    return msgspec.structs.replace(verdict, note=_note(reference, runs, ranges) if ranges else "")


Run = tuple[Reference, int]
"""The rows of one set of sizes, and the batch."""


def _runs(
    reference: Reference,
    batches: Sequence[int],
    ranges: Mapping[str, ShapeRange] | None,
    allowed: Allowed,
    most: int,
) -> Iterator[Run]:
    main, *others = reference.cases
    if main.batch is None:
        yield main, 0
        yield from ((other, 0) for other in others if ranges is not None)
        return
    for batch in batches:
        if allowed({**main.sizes, main.batch: batch}):
            yield main, batch
    most = max(most, max(batches, default=0) * elements(main.inputs) // main.rows)
    for other in others if ranges is not None else ():
        for batch in batches_of(other, ranges or {}, most=most, allowed=allowed):
            yield other, batch


def batches_of(
    case: Reference, ranges: Mapping[str, ShapeRange], *, most: int, allowed: Allowed = any_size
) -> tuple[int, ...]:
    """Return the batches at which rows at other sizes are run (`trtship.verify.sizes.batches_at`)."""
    if case.batch is None:
        return (case.rows,)
    row = elements(case.inputs) // case.rows
    return batches_at(case.sizes, ranges, case.batch, row=row, most=most, allowed=allowed)


def _note(reference: Reference, runs: Sequence[Run], ranges: Mapping[str, ShapeRange]) -> str:
    """What was not run: sizes without rows, and batches that are too large for one run."""
    parts = [left_out_in_words([(one.sizes, one.reason) for one in reference.untried])]
    if reference.batch is not None and reference.batch in ranges:
        largest: dict[str, int] = {}
        for case, batch in runs[1:]:
            key = in_words(case.sizes, joint=" ")
            largest[key] = max(batch, largest.get(key, 0))
        usual, full = in_words(reference.sizes, joint=" "), ranges[reference.batch].max
        smaller = {key: batch for key, batch in largest.items() if key != usual and batch < full}
        if smaller:
            key, batch = min(smaller.items(), key=lambda item: item[1])
            parts.append(
                f"the largest batches are not run at {len(smaller)} of the other sizes: "
                f"at most {reference.batch}={batch} at {key}"
            )
    return "; ".join(filter(None, parts))


def as_session_takes(session: Session, feeds: Mapping[str, Any]) -> dict[str, Any]:
    """Floating feeds in the session's own input types: a plan may have been asked for with fp16 inputs."""
    dtypes = {spec.name: spec.dtype for spec in session.inputs}
    return {
        name: array.astype(dtypes[name], copy=False) if array.dtype.kind == "f" else array
        for name, array in feeds.items()
    }
