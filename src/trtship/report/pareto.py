"""Accuracy against latency: the candidates of a search, or the variants of a bench."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import msgspec
from markupsafe import Markup

from trtship.bench.plot import throughput_lines
from trtship.bench.report import BenchReport
from trtship.bundle.candidates import Candidate, Choice
from trtship.chart import Axis, Rule, Series, chart
from trtship.report.figures import FAR, Figure, Table, letters
from trtship.report.words import cut, ms, points, seconds, several, size

Kind = Literal["dot", "ring", "cross"]
LOOKS: dict[str, tuple[Kind, int]] = {"shipped": ("dot", 0), "passed": ("ring", 1), "failed": ("cross", 6)}
"""Shape and colour by outcome."""


class Point(msgspec.Struct, frozen=True):
    """A candidate that was timed: ms a batch with its interval, and its error, both the less the better."""

    label: str
    outcome: str
    ms: float
    low: float
    high: float
    error: float


def of_choice(choice: Choice, *, usual: int) -> tuple[Figure, int | None]:
    """Every candidate, and the batch that is plotted: the one that most were timed at, `usual` where they are equal.
    Without times there is the table alone."""
    table = _candidates(choice)
    timed = Counter(one.batch for c in choice.candidates for one in c.latency)
    if not timed:
        return Figure(svg=Markup(""), table=table), None
    batch = max(timed, key=lambda b: (timed[b], b == usual, b))
    dropped, label = _accuracy(choice.candidates)
    found = [
        Point(cut(c.name, 24), c.outcome, one.ms, one.low, one.high, error)
        for c in choice.candidates
        for one in c.latency
        if one.batch == batch and (error := c.drop if dropped else c.rel_l2) is not None
    ]
    gate = choice.gates.get("--max-drop" if dropped else "--max-rel-l2")
    eager = next((one.ms for one in choice.eager if one.batch == batch), None)
    return Figure(
        svg=_plot(found, label=label, batch=batch, log=not dropped, gate=gate, eager=eager), table=table
    ), batch


def of_bench(report: BenchReport, *, usual: int) -> tuple[Figure, int | None]:
    """Every variant at the batch that most were timed at; its letter is that of the throughput's plot."""
    rows = [row for row in report.rows if row.gpu is not None]
    timed = Counter(row.batch for row in rows)
    if not timed:
        return Figure(svg=Markup(""), table=Table((), ())), None
    batch = max(timed, key=lambda b: (timed[b], b == usual, b))
    names = letters(list(throughput_lines(report)))
    found: list[Point] = []
    key: dict[str, tuple[str, str, int]] = {}
    for row in rows:
        error = row.exact_error or row.error
        if row.batch != batch or row.gpu is None or error is None or error.rel_l2 is None:
            continue
        outcome = "failed" if not row.right else "shipped" if row.ours else "passed"
        t = row.gpu
        letter = names.get(row.name, "")
        key.setdefault(letter or "×", (letter or "×", row.name, LOOKS[outcome][1]))
        found.append(Point(letter, outcome, t.median_ms, t.low_ms, t.high_ms, error.rel_l2))
    svg = _plot(found, label="relative L2", batch=batch, log=True, gate=None, eager=None)
    return Figure(svg=svg, table=Table((), ()), key=tuple(sorted(key.values()))), batch


def front(candidates: Sequence[Point]) -> list[Point]:
    """Those that passed and that no other is both faster and more accurate than, from the fastest on."""
    found: list[Point] = []
    for one in sorted((p for p in candidates if p.outcome != "failed"), key=lambda p: (p.ms, p.error)):
        if not found or one.error < found[-1].error:
            found.append(one)
    return found


def _accuracy(candidates: Sequence[Candidate]) -> tuple[bool, str]:
    """Whether top-1 tells the timed candidates apart, and the axis' label."""
    drops = [c.drop for c in candidates if c.latency]
    if all(d is not None for d in drops) and len(set(drops)) > 1:
        return True, "top-1 drop, points"
    return False, "relative L2"


def _plot(
    found: Sequence[Point], *, label: str, batch: int, log: bool, gate: float | None, eager: float | None
) -> Markup:
    found = [p for p in found if p.error > 0 or not log]
    if not found:
        return Markup("")
    best = front(found)
    rules = [Rule(axis="x", value=eager, label="eager")] if eager else []
    worst = max(p.error for p in found)
    if gate is not None and (not log or gate < FAR * worst):
        rules.append(Rule(axis="y", value=gate, label=f"gate {gate:g}"))
    times = [*(p.low for p in found), *(p.high for p in found), *([eager] if eager else [])]
    errors = [*(p.error for p in found), *(rule.value for rule in rules if rule.axis == "y")]
    x = Axis(label=f"GPU ms at batch {batch}", low=min(times) / 1.15, high=max(times) * 1.25, log=True)
    pad = (max(errors) - min(errors)) * 0.12 or 1.0
    y = (
        Axis(label=label, low=min(errors) / 1.6, high=max(errors) * 1.8, log=True)
        if log
        else Axis(label=label, low=min(errors) - pad, high=max(errors) + pad)
    )
    series = [Series(points=tuple(_steps(best)), kind="front")] if len(best) > 1 else []
    for p in found:
        kind, colour = LOOKS[p.outcome]
        spread = ((p.low, p.high),)
        series.append(Series(points=((p.ms, p.error),), kind=kind, colour=colour, label=p.label, spread=spread))
    words = "; ".join(f"{p.label or 'one that is wrong'}: {p.ms:.3g} ms, {p.error:.2g}, {p.outcome}" for p in found)
    return Markup(
        chart(
            x,
            y,
            series,
            title=f"Accuracy against latency at batch {batch}",
            description=f"{label} over GPU milliseconds, less is better on both. {words}. "
            f"On the front: {', '.join(p.label for p in best) or 'none'}.",
            name="pareto",
            rules=rules,
        )
    )


def _steps(best: Sequence[Point]) -> list[tuple[float, float]]:
    """The front as stairs: until the next one, the last one is the best."""
    found = [(best[0].ms, best[0].error)]
    for one in best[1:]:
        found += [(one.ms, found[-1][1]), (one.ms, one.error)]
    return found


def _candidates(choice: Choice) -> Table:
    batches = sorted({one.batch for c in choice.candidates for one in c.latency})
    columns: Mapping[str, Callable[[Candidate], Markup | str]] = {
        "candidate": lambda c: _named(c),
        "outcome": lambda c: Markup('<span class="{}">{}</span>').format(c.outcome.replace(" ", "-"), c.outcome),
        **{f"ms at batch {b}": (lambda c, b=b: _time(c, b)) for b in batches},  # type: ignore[misc]
        "relative L2": lambda c: size(c.rel_l2) if c.rel_l2 is not None else "",
        "top-1, %": lambda c: points(c.top1),
        "drop, points": lambda c: points(c.drop),
        "plan, MiB": lambda c: "" if c.plan_mib is None else f"{c.plan_mib:.1f}",
        "tried in": lambda c: seconds(c.seconds) if c.seconds else "",
        "why": lambda c: "; ".join([*([c.reason] if c.reason else []), *c.slower]),
    }
    rows = [tuple(cell(c) for cell in columns.values()) for c in choice.candidates]
    used = [i for i, head in enumerate(columns) if i < 2 or any(row[i] for row in rows) or head == "why"]
    heads = tuple(columns)
    return Table(tuple(heads[i] for i in used), tuple(tuple(row[i] for i in used) for row in rows), numbers=2)


def _named(candidate: Candidate) -> str:
    kept = f" ({several(len(candidate.kept), 'node')} kept higher)" if candidate.kept else ""
    return candidate.name + kept


def _time(candidate: Candidate, batch: int) -> str:
    return next((ms(one.ms) for one in candidate.latency if one.batch == batch), "")
