"""Attack a session: every probe, one verdict each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec

from trtship.errors import TrtshipError
from trtship.progress import SILENT, Progress
from trtship.session.base import Session
from trtship.spec import ShapeRange
from trtship.verify.compare import ON_CPU
from trtship.verify.probes import Attack, Probe, all_probes
from trtship.verify.reference import Reference
from trtship.verify.sizes import Allowed, any_size, elements, in_words, places_of
from trtship.verify.verdict import Bound, Verdict

PLACES = ("MAX", "MIN", "odd")
"""Where the probes run again, with all sizes beside the batch at that place of their ranges."""


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
    allowed: Allowed = any_size,
    most: int = ON_CPU,
    progress: Progress = SILENT,
) -> tuple[Verdict, ...]:
    """Run the probes on what `open_session` opens, and return a verdict for each that has a meaning here, in order.

    Those of `Probe.at_other_sizes` run at the usual sizes, and where all sizes beside the batch are the largest, the
    smallest, and odd. No probe raises for what a session does.

    Args:
        open_session: Opens the subject, more than once.
        reference: The original's rows.
        subject: Its name in the verdicts.
        ranges: The sizes that the subject takes, by letter.
        bound: That of its comparison with the original.
        session: One that is open already, and stays open.
        batches: Those to use (default: the least, the usual and the largest of the reference's batch letter).
        probes: Default to all.
        allowed: The model's own rules on its sizes, the batch's among them. What they refuse is not run.
        most: Elements of the inputs of one run at other sizes. A larger batch is run at a smaller size.
        progress: Is told of each probe.
    """
    sizes = batches if batches is not None else _batches(reference, ranges)
    own = None if session is not None else open_session()
    opened = session or own
    assert opened is not None
    try:
        chosen = all_probes() if probes is None else probes
        attacks: list[Attack] = []
        for case, some in _cases(reference, ranges, sizes, allowed, most):
            others = () if attacks else reference.others
            attacks.append(
                Attack(opened, open_session, case, subject=subject, batches=some, bound=bound, others=others)
            )
        found = []
        for index, probe in enumerate(chosen):
            progress.step(index / len(chosen), probe.name.replace("_", " "))
            found.append(_one(probe, attacks))
        return tuple(verdict for verdict in found if verdict is not None)
    finally:
        if own is not None:
            own.close()


def _cases(
    reference: Reference,
    ranges: Mapping[str, ShapeRange],
    batches: Sequence[int],
    allowed: Allowed,
    most: int,
) -> list[tuple[Reference, Sequence[int]]]:
    """The rows to attack with, and the batches of each; the usual sizes first."""
    main, *others = reference.cases
    letter = main.batch
    found: list[tuple[Reference, Sequence[int]]] = []
    found.append((main, [b for b in batches if letter is None or allowed({**main.sizes, letter: b})] or list(batches)))
    known = {name: places_of(ranges[name]) for name in main.sizes if name in ranges}
    wanted = [{name: places[place] for name, places in known.items()} for place in PLACES if known]
    for case in others:
        if case.sizes not in wanted or case.sizes == main.sizes:
            continue
        if letter is None:
            found.append((case, [case.rows]))
            continue
        largest = max(most // max(1, elements(case.inputs) // case.rows), min(batches))
        some = {min(b, largest) for b in batches}
        fine = [b for b in sorted(some) if allowed({**case.sizes, letter: b})]
        if fine:
            found.append((case, fine))
    return found


def _one(probe: Probe, attacks: Sequence[Attack]) -> Verdict | None:
    """The verdict of a probe over all sizes: the first failure, else that at the usual sizes."""
    verdicts, notes = [], []
    for attack in attacks if probe.at_other_sizes else attacks[:1]:
        verdict = _at(probe, attack, usual=attack is attacks[0])
        if verdict is None:
            continue
        if verdict.state == "failed":
            return verdict
        verdicts.append(verdict)
        where = "" if attack is attacks[0] else f"at {in_words(attack.reference.sizes)}: "
        notes += [where + verdict.note] if verdict.note else []
    if not verdicts:
        return None
    found = next((verdict for verdict in verdicts if verdict.state == "passed"), verdicts[0])
    return msgspec.structs.replace(found, note="; ".join(notes))


def _at(probe: Probe, attack: Attack, *, usual: bool) -> Verdict | None:
    if not usual and probe.name == "edge_inputs" and attack.reference.edges is None:
        return None
    try:
        return probe.run(attack)
    except TrtshipError as error:
        where = f" at {in_words(attack.reference.sizes)}" if attack.reference.sizes else ""
        return Verdict(
            subject=attack.subject,
            gate=probe.name,
            state="failed",
            reason=f"{probe.claim}: it could not run{where}: {error.what} ({error.why})",
            runtime=attack.session.runtime,
        )


def _batches(reference: Reference, ranges: Mapping[str, ShapeRange]) -> tuple[int, ...]:
    if reference.batch is None:
        return (reference.rows,)
    found = ranges[reference.batch]
    return tuple(sorted({found.min, found.opt, found.max}))
