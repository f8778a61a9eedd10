"""One way to make the plan: a precision, and the nodes that are held in a higher one."""

from __future__ import annotations

from trtship.spec import Precision, Record


class Way(Record, frozen=True):
    """`kept` are ONNX nodes of the optimized graph, by name; none for the plain precision."""

    precision: Precision
    kept: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.precision.value} mixed, {len(self.kept)} kept" if self.kept else self.precision.value
