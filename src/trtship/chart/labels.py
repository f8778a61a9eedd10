"""Where the words of a chart go, so that they cover neither its points nor each other.

A browser alone knows how wide text is: a letter is taken to be `LETTER` times as wide as it is high.
"""

from __future__ import annotations

from collections.abc import Sequence

LETTER = 0.56

Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""
Place = tuple[float, float, str]
"""x, y and the text-anchor."""


def apart(places: Sequence[float], *, gap: float) -> list[float]:
    """The same places, ascending, each at least `gap` below the one before."""
    found: list[float] = []
    for place in places:
        found.append(max(place, found[-1] + gap) if found else place)
    return found


def beside(label: str, at: tuple[float, float], frame: Box, letters: float, placed: Sequence[Box]) -> Place:
    """The place right or left of a point, at its height or a few lines off, where the label covers least."""
    left, top, right, bottom = frame
    x, y = at
    choices: list[Place] = [
        (x + dx, y + 4 + dy, anchor)
        for dy in (0, -12, 12, -24, 24, -36, 36)
        for dx, anchor in ((8, "start"), (-8, "end"))
    ]

    def cost(place: Place) -> float:
        a, b, c, d = box_of(label, place, letters)
        outside = max(0.0, left - a) + max(0.0, c - right) + max(0.0, top - b) + max(0.0, d - bottom)
        covered = sum(
            (min(c, r) - max(a, p)) * (min(d, s) - max(b, q))
            for p, q, r, s in placed
            if p < c and a < r and q < d and b < s
        )
        return 50 * outside + covered + 0.1 * abs(place[1] - y)

    return min(choices, key=cost)


def box_of(label: str, place: Place, letters: float) -> Box:
    """What a label covers there, `letters` being the height of its letters."""
    x, y, anchor = place
    wide = len(label) * letters * LETTER
    begin = x if anchor == "start" else x - wide
    return (begin, y - letters + 2, begin + wide, y + 2)
