"""How verbs show things on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trtship.verify import Verdict


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str = "") -> Any:
    """A rich table of plain text: square brackets in it are no markup."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    found = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title or None, title_justify="left", title_style="bold")
    for name in columns:
        found.add_column(Text(name), overflow="fold")
    for row in rows:
        found.add_row(*(Text(cell) for cell in row))
    return found


def verdict_table(verdicts: Sequence[Verdict]) -> Any:
    """A row a verdict: subject, gate, state, its worst figure against the bound, where it ran or why it did not."""
    return table(
        ("subject", "gate", "verdict", "worst", "bound", "where, or why not"),
        [
            (
                v.subject,
                {"rel_l2": "relative L2", "top1_drop": "top-1 drop"}[v.gate],
                v.state,
                _figure(v),
                "" if v.bound is None else f"{v.bound.value:.3g}",
                _detail(v),
            )
            for v in verdicts
        ],
    )


def _figure(verdict: Verdict) -> str:
    if verdict.worst is None:
        return ""
    return f"{verdict.worst:.2f}" if verdict.gate == "top1_drop" else f"{verdict.worst:.2e}"


def _detail(verdict: Verdict) -> str:
    if verdict.state == "not run":
        return verdict.reason
    parts = [verdict.runtime]
    if verdict.measures:
        batches = sorted({tuple(m.sizes.items()) for m in verdict.measures})
        parts.append("at " + ", ".join(" ".join(f"{k}={n}" for k, n in sizes) or "its shape" for sizes in batches))
        agreements = [m.top1_agreement for m in verdict.measures if m.top1_agreement is not None]
        cosines = [m.cosine for m in verdict.measures if m.cosine is not None]
        if cosines:
            parts.append(f"cosine >= {min(cosines):.6f}")
        if agreements:
            parts.append(f"top-1 agreement >= {min(agreements):.0%}")
    if (e := verdict.evaluation) is not None:
        parts.append(f"top-1 {e.top1:.2f}% against {e.top1_original:.2f}% on {e.pictures} pictures")
    if verdict.reason:
        parts.append(verdict.reason)
    return "; ".join(parts)
