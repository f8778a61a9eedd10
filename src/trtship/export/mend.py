"""A graph that fails its check because its batch became a constant gets one chance: made dynamic, and checked again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, TypeVar

from trtship.errors import ExportMismatchError, GraphError
from trtship.graphs import EXTERNAL_OVER
from trtship.progress import Progress

Checked = TypeVar("Checked")


class Thawed(Protocol):
    @property
    def repaired(self) -> tuple[str, ...]:
        """The nodes in which the batch was a constant; none where it was not found to be one."""


class Thaw(Protocol):
    """Writes `source` to `target` with a batch that is dynamic throughout; where that was so, it may write nothing. The
    passes come after this room, so that it is handed in.

    `traced` is the batch that the graph is right at, None where nobody knows; `letter` what the first dimension is to
    be called of inputs that are fixed at it as well, None where that is a choice; `sizes` are those of other letters.
    Raises GraphError where the batch is frozen and cannot be repaired.
    """

    def __call__(
        self,
        source: Path,
        target: Path,
        *,
        traced: int | None,
        letter: str | None,
        sizes: Mapping[str, int],
        external_over: int,
        progress: Progress,
    ) -> Thawed: ...


def check_and_mend(
    check: Callable[[], Checked],
    graph: Path,
    *,
    thaw: Thaw | None,
    batch: str | None,
    traced: int | None,
    sizes: Mapping[str, int],
    external_over: int = EXTERNAL_OVER,
    progress: Progress,
) -> tuple[Checked, tuple[str, ...]]:
    """What `check` says of `graph`, and the nodes that had to be repaired in it before it passed.

    `batch` is the batch's letter; `traced` is the batch that the graph was exported at here, None for one that was
    brought; `sizes` are those that it is checked at first. Raises the check's
    ExportMismatchError, with the node that is at fault where `thaw` names one.
    """
    try:
        return check(), ()
    except ExportMismatchError as mismatch:
        if thaw is None or batch is None:
            raise
        others = {letter: size for letter, size in sizes.items() if letter != batch}
        try:
            thawed = thaw(
                graph,
                graph,
                traced=traced,
                letter=batch if traced is not None else None,
                sizes=others,
                external_over=external_over,
                progress=progress,
            )
        except GraphError as refusal:
            why = f"{mismatch.why}; {refusal.what}" + (f": {refusal.why}" if refusal.why else "")
            raise ExportMismatchError(mismatch.what, why=why, do=refusal.do or mismatch.do) from refusal
        if not thawed.repaired:
            raise
    return check(), thawed.repaired
