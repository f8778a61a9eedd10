"""`trtship doctor`: what this machine has, what it lacks, and the commands that mend it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trtship.cli.console import Console
    from trtship.doctor import Diagnosis

HELP = "say what this machine has, what it lacks, and the command that mends it"
EXAMPLE = "trtship doctor --json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It takes no options of its own."""


def run(arguments: argparse.Namespace, console: Console) -> int:
    """0 when nothing is missing or wrong, else 3."""
    from trtship.doctor import diagnose

    with console.progress.stage("looking at this machine"):
        diagnosis = diagnose()
    console.result(diagnosis)
    if not console.json:
        _show(diagnosis, console)
    return 0 if diagnosis.ok else 3


def _show(diagnosis: Diagnosis, console: Console) -> None:
    from trtship.cli.tables import table

    findings = [(f.topic, f.subject, f.state, f"{f.found}\n{f.why}".strip()) for f in diagnosis.findings]
    console.print(table(("topic", "what", "state", "found"), findings))
    abilities = [(a.what, "yes" if a.able else "no", a.why) for a in diagnosis.abilities]
    console.print(table(("this machine can", "", ""), abilities))
    _show_mends(diagnosis, console)


def _show_mends(diagnosis: Diagnosis, console: Console) -> None:
    """Each command once, as plain text, so that no line break gets into what is copied."""
    mends: dict[str, list[str]] = {}
    for f in diagnosis.findings:
        if f.mend:
            mends.setdefault(f.mend, []).append(f"{f.subject} ({f.state})")
    for command, subjects in mends.items():
        console.print(f"\n# {', '.join(dict.fromkeys(subjects))}\n{command}")
    broken = sum(f.state in ("missing", "wrong") for f in diagnosis.findings)
    console.print(f"\n{broken} missing or wrong" if broken else "\nnothing is missing or wrong")
