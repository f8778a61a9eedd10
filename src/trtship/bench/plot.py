"""Throughput against batch: one line a variant, for the bundle's report or a file by itself."""

from __future__ import annotations

from collections.abc import Mapping

from trtship.bench.report import BenchReport
from trtship.chart import STYLE, Axis, Series, chart

Lines = dict[str, tuple[tuple[int, float], ...]]


def throughput_lines(report: BenchReport) -> Lines:
    """(batch, images/s by GPU time) of every variant, ours first. Rows without a time, or wrong, are left out; of
    several builds it is the median."""
    found: dict[str, dict[int, float]] = {}
    for ours in (True, False):
        for batch in sorted({row.batch for row in report.rows}):
            for name, ms in report.figures(batch, ours=ours).items():
                found.setdefault(name, {})[batch] = batch / ms * 1e3
    return {name: tuple(points.items()) for name, points in found.items()}


def throughput_chart(lines: Lines, *, title: str, name: str, labels: Mapping[str, str] | None = None) -> str:
    """Images a second over the batch, both on logarithmic axes, as an SVG (`trtship.chart.chart`).

    `labels` are short names for the lines' ends, for a page that tells what they stand for; without them the SVG has
    the names, and its style: a file by itself.
    """
    values = [v for line in lines.values() for _, v in line]
    batches = sorted({b for line in lines.values() for b, _ in line})
    best, fastest = max((line[-1][1], one) for one, line in lines.items() if line[-1][0] == batches[-1])
    x = Axis(label="batch", low=batches[0], high=batches[-1], log=True, ticks=tuple(map(float, batches)))
    y = Axis(label="images/s", low=min(values) / 1.2, high=max(values) * 1.2, log=True)
    series = [
        Series(points=line, label=one if labels is None else labels[one], colour=index)
        for index, (one, line) in enumerate(lines.items())
    ]
    description = (
        f"Throughput of {len(lines)} variants at batch {', '.join(map(str, batches))}, on logarithmic axes. "
        f"The fastest at batch {batches[-1]} is {fastest} with {best:.0f} images/s."
    )
    if labels is not None:
        return chart(x, y, series, title=title, description=description, name=name)
    return chart(
        x,
        y,
        series,
        title=title,
        description=description,
        name=name,
        size=(840, 420),
        margins=(20, 340, 50, 60),
        letters=12,
        style=STYLE,
    )


def throughput_svg(report: BenchReport, *, title: str) -> str:
    """The chart as a file by itself."""
    lines = throughput_lines(report)
    if not lines:
        return '<svg xmlns="http://www.w3.org/2000/svg" height="60"><text x="10" y="30">nothing timed</text></svg>'
    return throughput_chart(lines, title=title, name="throughput")
