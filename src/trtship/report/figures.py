"""The three plots, each with the table of what it shows."""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_lowercase

import msgspec
from markupsafe import Markup

from trtship.bench.plot import throughput_chart, throughput_lines
from trtship.bench.report import BenchReport, Row
from trtship.chart import Axis, Rule, Series, chart
from trtship.report.words import count, ms, size
from trtship.verify import Bound
from trtship.verify.error_by_layer import ErrorsByLayer, LayerError

PLOTTED = 1e-30, 1e30
"""What a logarithmic axis shows: a relative error beyond is at its end."""
FAR = 1000.0
"""A bound that is further off than this many times what was measured would flatten the plot."""


class Table(msgspec.Struct, frozen=True):
    """`heads` from the `numbers`th on stand over figures."""

    heads: tuple[str, ...]
    rows: tuple[tuple[Markup | str, ...], ...]
    numbers: int = 1


class Figure(msgspec.Struct, frozen=True):
    """`svg` is empty where there is too little to plot; `key` tells what the letters in it stand for: letter, words,
    and the index of its colour."""

    svg: Markup
    table: Table
    key: tuple[tuple[str, str, int], ...] = ()


def throughput(report: BenchReport) -> Figure:
    """Images a second against batch, of everything that was timed and is right."""
    lines = throughput_lines(report)
    labels = letters(list(lines))
    key = tuple((labels[name], name, index) for index, name in enumerate(lines))
    rows = sorted(report.rows, key=lambda row: row.batch)
    svg = ""
    if lines:
        svg = throughput_chart(lines, title="Throughput against batch", name="throughput", labels=labels)
    return Figure(svg=Markup(svg), table=_bench_table(rows, labels), key=key)


def letters(names: Sequence[str]) -> dict[str, str]:
    """a, b, ... z, a2, b2 ..."""
    rounds = [letter + (str(n + 1) if n else "") for n in range(len(names) // 26 + 1) for letter in ascii_lowercase]
    return dict(zip(names, rounds, strict=False))


def _bench_table(rows: Sequence[Row], labels: dict[str, str]) -> Table:
    heads = ("", "variant", "batch", "GPU ms", "95 %", "images/s", "end to end ms", "relative L2")
    return Table(heads, tuple(_bench_row(row, labels.get(row.name, "")) for row in rows), numbers=2)


def _bench_row(row: Row, letter: str) -> tuple[Markup | str, ...]:
    if row.gpu is None:
        why = row.reason or "no reason was recorded"
        return (letter, f"{row.label}: not timed: {why}", str(row.batch), "", "", "", "", "")
    error = row.exact_error or row.error
    name = row.label if row.right else f"{row.label}: wrong, over the bound"
    return (
        letter,
        name + (f" ({row.note})" if row.note else ""),
        str(row.batch),
        ms(row.gpu.median_ms),
        f"{ms(row.gpu.low_ms)} to {ms(row.gpu.high_ms)}",
        count(row.batch / row.gpu.median_ms * 1e3),
        ms(row.end_to_end.median_ms) if row.end_to_end else "",
        size(error.rel_l2) if error else "",
    )


def by_layer(errors: ErrorsByLayer, bound: Bound | None, *, subject: str) -> Figure:
    """Relative L2 of each tensor that was read out, over how far down the graph it stands."""
    right = [layer for layer in errors.layers if layer.rel_l2]
    table = Table(
        ("tensor", "operator", "depth, %", "relative L2", "largest magnitude"),
        tuple(
            (Markup("<code>{}</code>").format(e.tensor), e.operator, f"{e.depth:.1f}", size(e.rel_l2), f"{e.peak:.3g}")
            for e in errors.layers
        ),
        numbers=2,
    )
    if len(right) < 2:
        return Figure(svg=Markup(""), table=table)
    values = [_plotted(layer) for layer in right]
    rules = []
    if bound is not None and bound.value < FAR * max(values):
        rules.append(Rule(axis="y", value=bound.value, label=f"bound at the output, {bound.value:.2g}"))
    reach = [*values, *(rule.value for rule in rules)]
    low, high = min(reach) / 1.5, max(reach) * 1.8
    lost = [layer for layer in errors.layers if layer.rel_l2 is None]
    series = [Series(points=tuple((layer.depth, _plotted(layer)) for layer in right), kind="line")]
    if lost:
        points = tuple((layer.depth, high / 1.2) for layer in lost)
        series.append(Series(points=points, kind="cross", colour=6, label="not finite"))
    svg = chart(
        Axis(label="depth of the graph, % of its nodes", low=0, high=100),
        Axis(label="relative L2", low=low, high=high, log=True),
        series,
        title="Error by layer",
        description=_in_words(right, lost, subject),
        name="layers",
        rules=rules,
    )
    return Figure(svg=Markup(svg), table=table)


def _plotted(layer: LayerError) -> float:
    """Its relative L2 within `PLOTTED`."""
    return min(max(layer.rel_l2 or 0.0, PLOTTED[0]), PLOTTED[1])


def _in_words(right: Sequence[LayerError], lost: Sequence[LayerError], subject: str) -> str:
    worst = max(right, key=lambda layer: layer.rel_l2 or 0.0)
    first, last = right[0], right[-1]
    text = (
        f"Relative L2 of {subject} against the fp32 graph at {len(right)} tensors: {first.rel_l2:.1e} at the first, "
        f"{last.rel_l2:.1e} at the last, {worst.rel_l2:.1e} at most, at {worst.tensor}."
    )
    return text + (f" {len(lost)} tensors are not finite, the first of them {lost[0].tensor}." if lost else "")
