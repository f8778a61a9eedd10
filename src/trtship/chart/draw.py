"""Points and lines over two axes, as an SVG.

Shapes have classes and no colours of their own: the page that holds them gives those (`STYLE` is for a file by itself).
Series differ in shape, dash and a label beside them too, so that nothing rests on colour.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Literal

import msgspec

from trtship.chart.axis import Axis, number
from trtship.chart.labels import Box, Place, apart, beside, box_of

COLOURS = ("#1b6e3c", "#2f5fa8", "#b3541e", "#7a3e9d", "#8a6d00", "#2b7f8e", "#b02a4a", "#5b5b5b")
DASHES = ("none", "7 3", "2 3", "9 3 2 3")
STYLE = "".join(
    [
        ".chart{font:12px sans-serif;background:#fff}.chart text{fill:#222}",
        ".chart .frame,.chart .rule{fill:none;stroke:#444}.chart .rule{stroke-dasharray:4 3}",
        ".chart .grid{stroke:#ddd}.chart .front{fill:none;stroke:#999}",
        ".chart .line,.chart .cross{fill:none;stroke-width:2}.chart .ring{fill:#fff;stroke-width:2}",
        *(f".chart .s{i}{{stroke:{c}}}.chart .dot.s{i}{{fill:{c}}}" for i, c in enumerate(COLOURS)),
    ]
)


class Series(msgspec.Struct, frozen=True, kw_only=True):
    """Points, from left to right: a `line` with a dot at each, single `dot`s, `ring`s or `cross`es, or a bare line in
    the background (`front`). `label` stands beside the last point, `colour` is an index that also chooses the dash;
    `spread` are ranges along the x axis, one a point."""

    points: tuple[tuple[float, float], ...]
    kind: Literal["line", "dot", "ring", "cross", "front"] = "line"
    label: str = ""
    colour: int = 0
    spread: tuple[tuple[float, float], ...] = ()


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """A line across the chart at a value of one axis."""

    axis: Literal["x", "y"]
    value: float
    label: str


class _Canvas:
    """Turns values into places; remembers which of them are taken."""

    def __init__(self, x: Axis, y: Axis, frame: Box, letters: float) -> None:
        self._x, self._y, self.frame, self.letters = x, y, frame, letters
        self.taken: list[Box] = []

    def x(self, value: float) -> float:
        left, _, right, _ = self.frame
        return left + self._x.at(value) * (right - left)

    def y(self, value: float) -> float:
        _, top, _, bottom = self.frame
        return bottom - self._y.at(value) * (bottom - top)

    def text(self, label: str, place: Place) -> str:
        self.taken.append(box_of(label, place, self.letters))
        return _text(label, *place)


def chart(
    x: Axis,
    y: Axis,
    series: Sequence[Series],
    *,
    title: str,
    description: str,
    name: str,
    rules: Sequence[Rule] = (),
    size: tuple[int, int] = (420, 300),
    margins: tuple[int, int, int, int] = (14, 24, 44, 62),
    letters: float = 12.5,
    style: str = "",
) -> str:
    """An `<svg>` of this `size` in its own units; the page scales it. `name` is unique on the page.

    `margins` are those above, right, below and left of the frame, `letters` the height of the largest letters that the
    page may give it; `style` is CSS to put inside.
    """
    (width, height), (top, right, bottom, left) = size, margins
    canvas = _Canvas(x, y, (left, top, width - right, height - bottom), letters)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 {width} {height}" role="img" '
            f'aria-labelledby="{name}-title {name}-desc">',
            f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-desc">{escape(description)}</desc>',
            *([f"<style>{style}</style>"] if style else []),
            *_axes(canvas, x, y, height),
            *(_rule(canvas, rule) for rule in rules),
            *(_shapes(canvas, one) for one in series),
            *_line_labels(canvas, [one for one in series if one.kind == "line" and one.label]),
            *_point_labels(canvas, [one for one in series if one.kind not in ("line", "front")]),
            "</svg>\n",
        ]
    )


def _text(label: str, x: float, y: float, anchor: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{escape(label)}</text>'


def _axes(canvas: _Canvas, x: Axis, y: Axis, height: int) -> list[str]:
    left, top, right, bottom = canvas.frame
    return [
        *(f'<path class="grid" d="M{left} {canvas.y(v):.1f}H{right}"/>' for v in y.marks),
        *(_text(number(v), left - 6, canvas.y(v) + 4, "end") for v in y.marks),
        *(f'<path class="frame" d="M{canvas.x(v):.1f} {bottom}v4"/>' for v in x.marks),
        *(_text(number(v), canvas.x(v), bottom + 17, "middle") for v in x.marks),
        f'<path class="frame" d="M{left} {top}V{bottom}H{right}"/>',
        _text(x.label, (left + right) / 2, height - 6, "middle"),
        _text(y.label, -(top + bottom) / 2, 12, "middle", ' transform="rotate(-90)"'),
    ]


def _rule(canvas: _Canvas, rule: Rule) -> str:
    left, top, right, bottom = canvas.frame
    if rule.axis == "y":
        at = canvas.y(rule.value)
        above = at - top > canvas.letters + 6
        return f'<path class="rule" d="M{left} {at:.1f}H{right}"/>' + canvas.text(
            rule.label, (right - 2, at - 5 if above else at + 14, "end")
        )
    at = canvas.x(rule.value)
    place: Place = (at + 4, top + canvas.letters, "start")
    if box_of(rule.label, place, canvas.letters)[2] > right:
        place = (at - 4, top + canvas.letters, "end")
    return f'<path class="rule" d="M{at:.1f} {top}V{bottom}"/>' + canvas.text(rule.label, place)


def _shapes(canvas: _Canvas, one: Series) -> str:
    points = [(canvas.x(a), canvas.y(b)) for a, b in one.points]
    path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
    if one.kind == "front":
        return f'<polyline class="front" points="{path}"/>'
    canvas.taken += [(a - 5, b - 5, a + 5, b + 5) for a, b in points]
    colour, dash = f"s{one.colour % len(COLOURS)}", DASHES[one.colour // len(COLOURS) % len(DASHES)]
    line = f'<polyline class="line {colour}" stroke-dasharray="{dash}" points="{path}"/>'
    parts = [line] if one.kind == "line" else []
    parts += [
        f'<path class="line {colour}" d="M{canvas.x(low):.1f} {b:.1f}H{canvas.x(high):.1f}"/>'
        for (low, high), (_, b) in zip(one.spread, points, strict=False)
    ]
    if one.kind == "cross":
        return "".join(
            [*parts, *(f'<path class="cross {colour}" d="M{a - 4:.1f} {b - 4:.1f}l8 8m0 -8l-8 8"/>' for a, b in points)]
        )
    shape, radius = ("ring" if one.kind == "ring" else "dot"), (2.5 if one.kind == "line" else 4.5)
    dots = (f'<circle class="{shape} {colour}" cx="{a:.1f}" cy="{b:.1f}" r="{radius}"/>' for a, b in points)
    return "".join([*parts, *dots])


def _line_labels(canvas: _Canvas, lines: Sequence[Series]) -> list[str]:
    """Beside the ends of the lines, moved down where they would cover each other."""
    ends = sorted((canvas.y(one.points[-1][1]), canvas.x(one.points[-1][0]), one.label) for one in lines)
    places = apart([y for y, _, _ in ends], gap=canvas.letters + 1)
    return [canvas.text(label, (x + 8, y + 4, "start")) for (_, x, label), y in zip(ends, places, strict=True)]


def _point_labels(canvas: _Canvas, series: Sequence[Series]) -> list[str]:
    found = []
    for one in series:
        if one.label:
            a, b = one.points[-1]
            at = (canvas.x(a), canvas.y(b))
            found.append(canvas.text(one.label, beside(one.label, at, canvas.frame, canvas.letters, canvas.taken)))
    return found
