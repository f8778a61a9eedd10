"""A frozen batch in a graph of which nobody knows the batch that it was traced with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from trtship.errors import GraphError
from trtship.files import temporary_folder
from trtship.graphs import EXTERNAL_OVER, load_graph, save_graph
from trtship.passes.base import interface_of
from trtship.passes.thaw import TRACED, ThawReport, rows_agree, same_function, thaw_batch
from trtship.progress import SILENT, Progress
from trtship.spec import batch_letter

LARGEST = 64
"""Of the batches that are tried because they divide a size."""


def thaw(
    source: Path,
    target: Path,
    *,
    traced: int | None,
    letter: str | None = None,
    sizes: Mapping[str, int] | None = None,
    external_over: int = EXTERNAL_OVER,
    progress: Progress = SILENT,
) -> ThawReport:
    """`thaw_batch`, or `thaw_unknown` where `traced` is None."""
    if traced is None:
        return thaw_unknown(source, target, sizes=sizes, external_over=external_over, progress=progress)
    return thaw_batch(
        source, target, traced=traced, letter=letter, sizes=sizes, external_over=external_over, progress=progress
    )


def thaw_unknown(
    source: Path,
    target: Path,
    *,
    sizes: Mapping[str, int] | None = None,
    external_over: int = EXTERNAL_OVER,
    progress: Progress = SILENT,
) -> ThawReport:
    """`thaw_batch` at every batch that the graph's constants allow. `target` is written where that repaired
    something; a batch that is fixed in the inputs is a choice.

    A graph that is frozen at 4 can be repaired at 2 as well, as another function, of which nothing in the graph tells
    that it is the wrong one. So a repair counts only where all that succeed are the same function.

    Raises GraphError where they differ, or where none succeeds.
    """
    inputs, _ = interface_of(load_graph(source))
    if batch_letter(inputs) is None or rows_agree(source, TRACED + 1, sizes):
        return ThawReport(traced=TRACED)
    found: list[tuple[Path, ThawReport]] = []
    refusal: GraphError | None = None
    with temporary_folder() as folder, progress.stage("look for the batch that the graph is frozen at"):
        for batch in _likely_batches(source):
            draft = folder / f"{batch}.onnx"
            try:
                report = thaw_batch(source, draft, traced=batch, sizes=sizes, external_over=external_over)
            except GraphError as error:
                refusal = refusal or error
                continue
            if report.repaired and (not found or not same_function(found[0][0], draft, TRACED + 1, sizes)):
                found.append((draft, report))
        if len(found) > 1:
            batches = " or ".join(str(report.traced) for _, report in found)
            raise GraphError(
                "the graph's batch is frozen, and may be repaired in several ways",
                why=f"its constants fit a model traced at batch {batches}, and these are different functions",
                do="trtship optimize --traced N repairs it, if you know the batch that it was exported with",
            )
        if not found:
            raise refusal or _nothing_found()
        draft, report = found[0]
        save_graph(load_graph(draft), target, external_over=external_over)
    progress.note(report.summary)
    return report


def _nothing_found() -> GraphError:
    return GraphError(
        "no node was found in which the batch is a constant",
        do="export it again with a batch that is dynamic throughout, or declare its input with a fixed batch",
    )


def _likely_batches(source: Path) -> list[int]:
    """Ascending: 1, the sizes that Reshapes and Expands have as constants, and what divides these, or the first size of
    another constant."""
    from onnx_ir.convenience import get_const_tensor

    reshaped: set[int] = set()
    others: set[int] = set()
    for node in load_graph(source).graph:
        for value in node.inputs:
            tensor = None if value is None else get_const_tensor(value)
            if tensor is None or not len(tensor.shape):  # no constant, or a number
                continue
            array = tensor.numpy()
            others.add(len(array))
            if node.op_type in ("Reshape", "Expand") and value is node.inputs[1]:
                reshaped |= {int(size) for size in array.ravel() if size > 0}
    divisors = {batch for batch in range(2, LARGEST + 1) if any(size % batch == 0 for size in reshaped | others)}
    return sorted({1, *reshaped, *divisors})
