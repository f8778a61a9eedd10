"""What the arrays of a call are, worked out once for each combination of their kind, dtypes, shapes and places."""

from __future__ import annotations

from typing import Any

from trtship.session.arrays import Kind


class Call:
    """Checked arrays, in the order of the session's inputs.

    `rows` is the batch, where the inputs have one; `parts` the rows of each run, several where the batch is larger than
    what is run at once. `plan` is what a backend works out for itself.
    """

    __slots__ = ("index", "kind", "on_gpu", "parts", "plan", "rows", "shapes")

    def __init__(
        self,
        kind: Kind,
        shapes: tuple[tuple[int, ...], ...],
        *,
        place: str,
        index: int,
        rows: int | None,
        parts: tuple[int, ...],
    ) -> None:
        self.kind, self.shapes, self.index, self.rows, self.parts = kind, shapes, index, rows, parts
        self.on_gpu = place == "cuda"
        self.plan: Any = None
