"""What `--precision auto` tried, on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trtship.bundle.candidates import Choice
    from trtship.cli.console import Console


def show_choice(choice: Choice, console: Console) -> None:
    """The table of candidates, the rule, and what made candidates slow."""
    from trtship.bundle.candidates import COLUMNS, candidate_rows
    from trtship.cli.tables import table

    eager = ", ".join(f"{one.ms:.3f} ms at batch {one.batch}" for one in choice.eager)
    gates = ", ".join(f"{name} {value:g}" for name, value in choice.gates.items())
    console.print(table(COLUMNS, candidate_rows(choice.candidates), title="candidates, the safest first"))
    console.print(f"gates: {gates}; speed: " + (f"timed on {choice.timed_on}" if choice.timed_on else "not measured"))
    if eager:
        console.print(f"eager PyTorch in fp32: {eager}")
    console.print(f"shipped: {choice.rule}")
    for candidate in choice.candidates:
        for line in candidate.slower:
            asked = f"why is {candidate.name} slower" if choice.timed_on else f"what {candidate.name} has more of"
            console.print(f"{asked}: {line}")
    for note in choice.notes:
        console.print(f"note: {note}")
    if not choice.complete:
        console.print("not every candidate was tried: the same command goes on from here")
