"""Attack a session: every probe, one verdict each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from trtship.errors import TrtshipError
from trtship.progress import SILENT, Progress
from trtship.session.base import Session
from trtship.spec import ShapeRange
from trtship.verify.probes import Attack, Probe, all_probes
from trtship.verify.reference import Reference
from trtship.verify.verdict import Bound, Verdict


def attack(
    open_session: Callable[[], Session],
    reference: Reference,
    *,
    subject: str,
    ranges: Mapping[str, ShapeRange],
    bound: Bound,
    session: Session | None = None,
    batches: Sequence[int] | None = None,
    probes: Sequence[Probe] | None = None,
    progress: Progress = SILENT,
) -> tuple[Verdict, ...]:
    """Run the probes on what `open_session` opens; a verdict for each that has a meaning here, in their order.

    `ranges` are the sizes that the subject takes, by letter; `bound` is that of its comparison with the original.
    `session` is one that is open already, and stays open; `batches` are those to use (default: the least, the usual
    and the largest of the reference's batch letter); `probes` default to all. No probe raises for what a session does.
    """
    sizes = batches if batches is not None else _batches(reference, ranges)
    own = None if session is not None else open_session()
    opened = session or own
    assert opened is not None
    try:
        given = Attack(opened, open_session, reference, subject=subject, batches=sizes, bound=bound, progress=progress)
        chosen = all_probes() if probes is None else probes
        found = []
        for index, probe in enumerate(chosen):
            progress.step(index / len(chosen), probe.name.replace("_", " "))
            found.append(_one(probe, given))
        return tuple(verdict for verdict in found if verdict is not None)
    finally:
        if own is not None:
            own.close()


def _one(probe: Probe, attack: Attack) -> Verdict | None:
    try:
        return probe.run(attack)
    except TrtshipError as error:
        return Verdict(
            subject=attack.subject,
            gate=probe.name,
            state="failed",
            reason=f"{probe.claim}: it could not run: {error.what} ({error.why})",
            runtime=attack.session.runtime,
        )


def _batches(reference: Reference, ranges: Mapping[str, ShapeRange]) -> tuple[int, ...]:
    if reference.batch is None:
        return (reference.rows,)
    found = ranges[reference.batch]
    return tuple(sorted({found.min, found.opt, found.max}))
