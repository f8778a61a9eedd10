"""Compare a session with the reference at the profile's sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trtship.errors import TrtshipError
from trtship.measure import Measure, measure
from trtship.progress import SILENT, Progress
from trtship.session.base import Session
from trtship.verify.reference import Reference
from trtship.verify.verdict import REL_L2, Bound, Verdict, judged


def compare(
    session: Session,
    reference: Reference,
    *,
    subject: str,
    batches: Sequence[int],
    bound: Bound,
    gate: str = REL_L2,
    progress: Progress = SILENT,
) -> Verdict:
    """Run the reference rows at each batch size; passes when every output is finite and within `bound` (relative L2
    of the worst row). Where a session's later runs go another way than its first (`Session.steady_after`), all are
    measured, and the one that is furthest off is told. A session that raises fails the gate: it would fail its user as
    well."""
    measures: list[Measure] = []
    sizes_list = [{**reference.sizes, reference.batch: b} if reference.batch else reference.sizes for b in batches]
    for index, sizes in enumerate(sizes_list if reference.batch else sizes_list[:1]):
        progress.step(index / len(sizes_list), ", ".join(f"{k}={v}" for k, v in sizes.items()))
        feeds, expected = reference.at(sizes[reference.batch] if reference.batch else 0)
        try:
            taken = as_session_takes(session, feeds)
            runs = [session.infer(taken) for _ in range(1 + session.steady_after)]
        except TrtshipError as error:
            return Verdict(
                subject=subject,
                gate=gate,
                state="failed",
                reason=f"it could not run at {sizes}: {error.what} ({error.why})",
                runtime=session.runtime,
                bound=bound,
                measures=tuple(measures),
            )
        for name in expected:
            floor = bound.floors.get(name, 0.0)
            found = [measure(expected[name], outputs[name], output=name, sizes=sizes, floor=floor) for outputs in runs]
            measures.append(max(found, key=lambda one: (not one.finite, one.rel_l2 or 0.0)))
    return judged(subject, gate, measures, bound=bound, runtime=session.runtime)


def as_session_takes(session: Session, feeds: Mapping[str, Any]) -> dict[str, Any]:
    """Floating feeds in the session's own input types: a plan may have been asked for with fp16 inputs."""
    dtypes = {spec.name: spec.dtype for spec in session.inputs}
    return {
        name: array.astype(dtypes[name], copy=False) if array.dtype.kind == "f" else array
        for name, array in feeds.items()
    }
