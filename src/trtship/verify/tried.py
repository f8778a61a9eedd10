"""What the checks of a bundle ran on, recorded in their verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from trtship.input_values import TriedInput
from trtship.verify.verdict import TOP1_DROP, Verdict


def tried_on(
    verdicts: Sequence[Verdict], inputs: Sequence[TriedInput], sizes: Mapping[str, int]
) -> tuple[Verdict, ...]:
    """Return the verdicts, with what those ran on that do not tell it yet.

    Args:
        verdicts: Of one bundle.
        inputs: The values of the bundle's reference rows.
        sizes: Its usual sizes, for checks that measured nothing.
    """
    found = []
    for verdict in verdicts:
        if verdict.state != "not run" and verdict.gate != TOP1_DROP and not verdict.inputs:
            seen = list({tuple(sorted(m.sizes.items())): m.sizes for m in verdict.measures}.values())
            verdict = msgspec.structs.replace(verdict, inputs=tuple(inputs), sizes=tuple(seen or [dict(sizes)]))
        found.append(verdict)
    return tuple(found)
