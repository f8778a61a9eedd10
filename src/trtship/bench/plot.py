"""Throughput against batch as an SVG: one line a variant, for a report or a README."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

from trtship.bench.report import BenchReport

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 760, 420, 70, 50, 20, 250
COLOURS = ("#1b6e3c", "#2f5fa8", "#b3541e", "#7a3e9d", "#8a6d00", "#3d8f9e", "#b02a4a", "#5b5b5b")
DASHES = ("", "6 3", "2 3", "8 3 2 3")


def throughput_svg(report: BenchReport, *, title: str) -> str:
    """Images a second (GPU time) over the batch, both on logarithmic axes. Rows without a time, or wrong, are left out;
    of several builds it is the median.

    Lines differ in dash as well as in colour, and each is named beside its end.
    """
    series: dict[str, list[tuple[int, float]]] = {}
    for batch in dict.fromkeys(row.batch for row in report.rows):
        for name, ms in (report.figures(batch, ours=True) | report.figures(batch, ours=False)).items():
            series.setdefault(name, []).append((batch, batch / ms * 1e3))
    points = [p for line in series.values() for p in line]
    if not points:
        return '<svg xmlns="http://www.w3.org/2000/svg" height="60"><text x="10" y="30">nothing timed</text></svg>'
    batches = sorted({b for b, _ in points})
    low, high = min(v for _, v in points), max(v for _, v in points)
    x = _scale(batches[0], batches[-1], LEFT, WIDTH - RIGHT)
    y = _scale(low / 1.2, high * 1.2, HEIGHT - BOTTOM, TOP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}" font-family="sans-serif" font-size="12">',
        f"<title>{escape(title)}</title>",
        f'<path d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}" fill="none" stroke="#444"/>',
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 10}" text-anchor="middle">batch</text>',
        f'<text x="15" y="{HEIGHT / 2}" transform="rotate(-90 15 {HEIGHT / 2})" text-anchor="middle">images/s</text>',
    ]
    parts += [f'<text x="{x(b):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{b}</text>' for b in batches]
    parts += [
        f'<text x="{LEFT - 6}" y="{y(v) + 4:.1f}" text-anchor="end">{v:g}</text>'
        f'<path d="M{LEFT} {y(v):.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>'
        for v in _ticks(low / 1.2, high * 1.2)
    ]
    ends = sorted(((y(line[-1][1]), name) for name, line in ((n, sorted(p)) for n, p in series.items())))
    places = _apart([place for place, _ in ends])
    label = {name: place for (_, name), place in zip(ends, places, strict=True)}
    for index, (name, line) in enumerate(series.items()):
        colour, dash = COLOURS[index % len(COLOURS)], DASHES[index // len(COLOURS) % len(DASHES)]
        path = " ".join(f"{x(b):.1f},{y(v):.1f}" for b, v in sorted(line))
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"/>'
        )
        parts += [f'<circle cx="{x(b):.1f}" cy="{y(v):.1f}" r="3" fill="{colour}"/>' for b, v in line]
        parts.append(f'<text x="{WIDTH - RIGHT + 10}" y="{label[name] + 4:.1f}" fill="{colour}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    span = math.log(high / low) or 1.0
    return lambda value: start + (end - start) * math.log(value / low) / span


def _ticks(low: float, high: float) -> list[float]:
    steps = [
        m * 10.0**e for e in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1) for m in (1, 2, 5)
    ]
    return [s for s in steps if low <= s <= high]


def _apart(places: Sequence[float], gap: float = 15) -> list[float]:
    """The same places, ascending, each at least `gap` below the one before."""
    found: list[float] = []
    for place in places:
        found.append(max(place, found[-1] + gap) if found else place)
    return found
