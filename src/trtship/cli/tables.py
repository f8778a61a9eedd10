"""How verbs show things on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from trtship.terminal import shown

if TYPE_CHECKING:
    from trtship.input_values import TriedInput
    from trtship.verify import Verdict

NAMES = {
    "rel_l2": "relative L2",
    "rel_l2_fp64": "relative L2, fp64",
    "rel_l2_given": "relative L2, inputs given",
    "top1_drop": "top-1 drop",
}


def on_inputs(inputs: Sequence[TriedInput]) -> str:
    """Return what a last line tells of the inputs that the checks ran on, after a semicolon; empty where that is not
    known."""
    if not inputs:
        return ""
    invented = [one for one in inputs if one.invented]
    if not invented:
        return f"; checked on {'; '.join(dict.fromkeys(one.values for one in inputs))}"
    texts = "; ".join(f"{one.name}: {one.values}" for one in invented)
    return f"; checked on INVENTED inputs ({texts}): --inputs FILE checks on real ones"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str = "") -> Any:
    """A rich table of plain text: square brackets in it are no markup, control characters are escapes."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    found = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        title=Text(shown(title), style="bold") if title else None,
        title_justify="left",
    )
    for name in columns:
        found.add_column(Text(shown(name)), overflow="fold")
    for row in rows:
        found.add_row(*(Text(shown(cell)) for cell in row))
    return found


def verdict_table(verdicts: Sequence[Verdict]) -> Any:
    """A row a verdict: subject, gate, state, its worst figure against the bound, where it ran or why it did not. The
    probes that a subject passed are one row, and so are those that did not run for one reason."""
    from trtship.report.verdicts import bounded
    from trtship.verify.verdict import COMPARISONS

    verdicts, left = bounded(verdicts)
    rows: list[Sequence[str]] = []
    for subject in dict.fromkeys(v.subject for v in verdicts):
        together: dict[tuple[str, str], list[Verdict]] = {}
        for verdict in [v for v in verdicts if v.subject == subject]:
            if verdict.gate in COMPARISONS or verdict.state == "failed":
                rows.append(_row(verdict))
            else:
                together.setdefault((verdict.state, verdict.reason), []).append(verdict)
        rows += [(subject, "probes", state, "", "", _probes(probes)) for (state, _), probes in together.items()]
    rows += [("", "", "", "", "", left)] if left else []
    return table(("subject", "gate", "verdict", "worst", "bound", "where, or why not"), rows)


def _row(verdict: Verdict) -> Sequence[str]:
    bound = "" if verdict.held_to is None else f"{verdict.held_to:.3g}"
    name = NAMES.get(verdict.gate, verdict.gate.replace("_", " "))
    return (verdict.subject, name, verdict.state, _figure(verdict), bound, _detail(verdict))


def _probes(probes: Sequence[Verdict]) -> str:
    """Their names, and what is to be said of all of them, or of one."""
    names = ", ".join(v.gate.replace("_", " ") for v in probes)
    notes = [f"{v.gate.replace('_', ' ')}: {v.note}" for v in probes if v.note]
    return "; ".join([f"{len(probes)}: {names}", *filter(None, [probes[0].reason]), *notes])


def _figure(verdict: Verdict) -> str:
    if verdict.worst is None:
        return ""
    return f"{verdict.worst:.2f}" if verdict.gate == "top1_drop" else f"{verdict.worst:.2e}"


def _detail(verdict: Verdict) -> str:
    if verdict.state == "not run":
        return verdict.reason
    from trtship.verify.sizes import tried_in_words

    parts = [verdict.runtime]
    if verdict.measures:
        parts.append(f"at {tried_in_words(verdict.measures)}")
        agreements = [m.top1_agreement for m in verdict.measures if m.top1_agreement is not None]
        cosines = [m.cosine for m in verdict.measures if m.cosine is not None]
        if cosines:
            parts.append(f"cosine >= {min(cosines):.6f}")
        if agreements:
            parts.append(f"top-1 agreement >= {min(agreements):.0%}")
    if (e := verdict.evaluation) is not None:
        parts.append(f"top-1 {e.top1:.2f}% against {e.top1_original:.2f}% on {e.pictures} pictures")
        parts.append(f"{e.agreement:.2f}% agree")
    parts += [text for text in (verdict.reason, verdict.note) if text]
    return "; ".join(parts)
