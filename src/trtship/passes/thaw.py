"""Make a frozen batch dynamic again, and prove it: the original is no witness at the batches where it is wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from trtship.errors import GraphError
from trtship.files import temporary_folder
from trtship.graphs import EXTERNAL_OVER, load_graph, precision_of, rounding_bound, save_graph
from trtship.measure import Measure, measure, random_inputs, worst
from trtship.passes.frozen_batch import FrozenBatch
from trtship.progress import SILENT, Progress
from trtship.session.base import Array
from trtship.session.onnxruntime import OnnxRuntimeSession
from trtship.spec import Record

TRACED = 2
"""The batch that trtship's own exports are traced with."""


class ThawReport(Record, frozen=True):
    """`repaired` names the nodes whose batch was frozen at `traced`. `doubt` is a reason for which the batch looked
    frozen beyond repair, though the graph treats each row alike at every batch tried.

    `error` is the largest relative L2 between rows alone and in a batch, and against the original at the traced batch;
    None where nothing was repaired. `bound` is what rounding explains.
    """

    traced: int
    repaired: tuple[str, ...] = ()
    doubt: str = ""
    error: float | None = None
    bound: float | None = None

    @property
    def summary(self) -> str:
        """One line for people."""
        places = "1 place" if len(self.repaired) == 1 else f"{len(self.repaired)} places"
        return f"the batch was frozen at {self.traced} in {places}, and is dynamic again"


def thaw_batch(
    source: Path,
    target: Path,
    *,
    traced: int = TRACED,
    letter: str | None = None,
    sizes: Mapping[str, int] | None = None,
    external_over: int = EXTERNAL_OVER,
    progress: Progress = SILENT,
) -> ThawReport:
    """Write `source` to `target` with a batch that is dynamic throughout; as it is where that was so already.

    With a `letter`, inputs whose first dimension is fixed at `traced` get it as well, and become dynamic; without one
    a fixed batch is a choice. `sizes` are those of the other letters (default: as the batch).

    Proved at the traced batch against `source`, and at one more by rows, alone against together. Raises GraphError for
    a batch that is frozen and cannot be repaired, naming the node, and the line of the model where that is known.
    """
    with temporary_folder() as folder, progress.stage("look for a frozen batch"):
        draft = folder / "thawed.onnx"
        try:
            report = FrozenBatch(traced=traced, letter=letter).apply(source, draft, external_over=external_over)
        except GraphError as refusal:
            if letter is not None or not rows_agree(source, traced + 1, sizes):
                raise
            save_graph(load_graph(source), target, external_over=external_over)
            return ThawReport(traced=traced, doubt=f"{refusal.what}: {refusal.why}")
        if not report.repaired:
            save_graph(load_graph(source), target, external_over=external_over)
            return ThawReport(traced=traced)
        bound = math.hypot(_bound(source), _bound(draft))
        error = worst([*_against(source, draft, traced, sizes), *_rows(draft, traced + 1, sizes)])
        if error is None or error > bound:
            raise GraphError(
                f"the batch is frozen at {traced}, and the repaired graph is not the same function",
                why=f"repaired: {', '.join(report.repaired[:5])}; "
                + ("NaN or Inf" if error is None else f"relative L2 {error:.2g}, over {bound:.2g}"),
                do="use -1, or x.shape[0] without int(), where the model computes with the batch size",
            )
        save_graph(load_graph(draft), target, external_over=external_over)
    thawed = ThawReport(traced=traced, repaired=report.repaired, error=error, bound=bound)
    progress.note(thawed.summary)
    return thawed


def rows_agree(graph: Path, batch: int, sizes: Mapping[str, int] | None = None) -> bool:
    """Whether each row comes out alone as it does in a batch, within the graph's own rounding."""
    try:
        error = worst(_rows(graph, batch, sizes))
    except GraphError:
        return False
    return error is not None and error <= math.hypot(_bound(graph), _bound(graph))


def same_function(before: Path, after: Path, batch: int, sizes: Mapping[str, int] | None = None) -> bool:
    """Whether both give the same on random inputs at one batch, within the rounding of both."""
    error = worst(_against(before, after, batch, sizes))
    return error is not None and error <= math.hypot(_bound(before), _bound(after))


def _sizes(session: OnnxRuntimeSession, batch: int, others: Mapping[str, int] | None) -> dict[str, int]:
    """The batch for every letter that is not among the others."""
    return {letter: (others or {}).get(letter, batch) for spec in session.inputs for letter in spec.letters}


def _bound(graph: Path) -> float:
    model = load_graph(graph)
    return rounding_bound(model, precision_of(model)).bound


def _against(before: Path, after: Path, batch: int, others: Mapping[str, int] | None) -> list[Measure]:
    with (
        OnnxRuntimeSession(before, optimize=False) as first,
        OnnxRuntimeSession(after, optimize=False) as second,
    ):
        sizes = _sizes(second, batch, others)
        feeds = random_inputs(second.inputs, sizes, seed=11)
        expected, found = first.infer(feeds), second.infer(feeds)
        return [measure(array, found[name], output=name, sizes=sizes) for name, array in expected.items()]


def _rows(graph: Path, batch: int, others: Mapping[str, int] | None) -> list[Measure]:
    """Every output with a row an image, in a batch, against its rows one by one."""
    with OnnxRuntimeSession(graph, optimize=False) as session:
        sizes = _sizes(session, batch, others)
        feeds = random_inputs(session.inputs, sizes, seed=12)
        letter = session.inputs[0].shape[0]
        batched = {spec.name for spec in session.inputs if spec.shape and spec.shape[0] == letter}

        def alone(row: int) -> dict[str, Array]:
            return session.infer({n: a[row : row + 1] if n in batched else a for n, a in feeds.items()})

        together, rows = session.infer(feeds), [alone(row) for row in range(batch)]
        return [
            measure(np.concatenate([row[name] for row in rows]), array, output=name, sizes=sizes)
            for name, array in together.items()
            if array.ndim
        ]
