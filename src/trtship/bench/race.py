"""Start everybody, check everybody, time everybody: A B C, A B C."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import msgspec
import numpy as np

from trtship.bench.child import TO_TIME, Remote
from trtship.bench.entrants import Entrant, prepare_all
from trtship.bench.gpu_state import gpu_state
from trtship.bench.protocol import Output, Prepared, Work
from trtship.bench.report import Row, WatchedState
from trtship.bench.timing import ROUNDS, RunnerFailed, time_interleaved
from trtship.measure import Measure, measure
from trtship.progress import SILENT, Progress
from trtship.verify import Reference

Place = tuple[Entrant, int]
LEFT_OUT = "not asked for: --against names other variants of this peer"


class Truth(msgspec.Struct, frozen=True):
    """What outputs are held against: eager PyTorch in fp32, and the same in float64; `bound` is on the first."""

    reference: Reference
    exact: Reference | None
    bound: float


@dataclass(frozen=True, kw_only=True)
class Heat:
    """Those who are timed against each other: all at one batch, and the names of those that nobody asked for. `truth`
    may be asked more than once."""

    work: Work
    batch: int
    entrants: Sequence[Entrant]
    truth: Callable[[], Truth]
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A heat's rows, and the GPU's states around it."""

    rows: tuple[Row, ...]
    states: tuple[WatchedState, ...]


def race(
    groups: Sequence[Sequence[Heat]],
    *,
    folder: Path,
    device: str = "cuda",
    within: float = 1800.0,
    rounds: int = ROUNDS,
    meanwhile: Callable[[], None] = lambda: None,
    builds_on_gpu: bool = False,
    progress: Progress = SILENT,
) -> list[Outcome]:
    """One outcome a heat. The processes of a group's heats live at the same time, and are prepared together; then its
    heats are timed, one after the other. `meanwhile` is done while the first group prepares."""
    found = []
    for number, heats in enumerate(groups):
        entrants = [entrant for heat in heats for entrant in heat.entrants]
        with contextlib.ExitStack() as stack:
            stack.callback(_close_all, entrants)
            with progress.stage("start", f"{len(entrants)} processes"):
                for index, (heat, entrant) in enumerate((h, e) for h in heats for e in h.entrants):
                    entrant.start(heat.work, device=device, folder=folder / f"worker-{number}-{index}")
            prepare_all(
                entrants,
                within=within,
                meanwhile=meanwhile if number == 0 else lambda: None,
                builds_on_gpu=builds_on_gpu,
                progress=progress,
            )
            for heat in heats:
                count = sum(len(e.runners) for e in heat.entrants)
                with (
                    progress.stage("time", f"batch {heat.batch}: {count} variants, interleaved"),
                    _Watch(heat.batch, ours=sum(bool(e.runners) for e in entrants)) as watch,
                ):
                    rows = _time(heat.entrants, heat.truth(), folder, rounds, watch.during)
                rows += [Row(batch=heat.batch, name=name, ours=False, reason=LEFT_OUT) for name in heat.left_out]
                found.append(Outcome(rows=tuple(rows), states=tuple(watch.states)))
    return found


def _close_all(entrants: Sequence[Entrant]) -> None:
    with ThreadPoolExecutor(max(1, len(entrants))) as pool:
        list(pool.map(Entrant.close, entrants))


class _Watch:
    """Looks at the GPU before and after the block, and in a thread beside it when `during` is called."""

    def __init__(self, batch: int, *, ours: int) -> None:
        self._batch, self._ours = batch, ours
        self._pool = ThreadPoolExecutor(1)
        self.states: list[WatchedState] = []

    def _look(self, when: str) -> None:
        self.states.append(WatchedState(batch=self._batch, when=when, state=gpu_state(ours=self._ours)))

    def during(self) -> None:
        self._pool.submit(self._look, "during")

    def __enter__(self) -> Self:
        self._look("before")
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()
        self._look("after")


def _time(
    entrants: Sequence[Entrant], truth: Truth, folder: Path, rounds: int, halfway: Callable[[], None]
) -> list[Row]:
    checked: dict[str, tuple[Place, Row]] = {}
    rows: list[Row] = []
    for entrant in entrants:
        rows += [_absent(entrant, name, reason) for name, reason in entrant.failed]
        for index, runner in enumerate(entrant.runners):
            key = str(len(checked))
            checked[key] = ((entrant, index), _checked(entrant, index, runner, truth, folder))
    fit = {key: place for key, (place, row) in checked.items() if not row.reason}
    times, lost = time_interleaved(
        {key: _remote(place, end_to_end=False) for key, place in fit.items()},
        rounds=rounds,
        halfway=halfway,
    )
    clocks, lost_later = time_interleaved(
        {key: _remote(place, end_to_end=True) for key, place in fit.items() if key in times}, rounds=rounds
    )
    for key, ((entrant, index), row) in checked.items():
        reason = row.reason or lost.get(key) or lost_later.get(key) or ""
        row = msgspec.structs.replace(row, gpu=times.get(key), end_to_end=clocks.get(key), reason=reason)
        rows.append(_still_right((entrant, index), row, truth, folder) if not reason else _untimed(row))
    return rows


def _remote(place: Place, *, end_to_end: bool) -> Remote:
    entrant, index = place
    assert entrant.child is not None
    return Remote(entrant.child, index, end_to_end=end_to_end)


def _absent(entrant: Entrant, name: str, reason: str) -> Row:
    return Row(batch=entrant.batch, name=name, ours=entrant.ours, reason=reason, prepare_seconds=entrant.seconds)


def _untimed(row: Row) -> Row:
    """What failed while it was timed has no time at all, and is not right."""
    return msgspec.structs.replace(row, gpu=None, end_to_end=None, right=False)


def _checked(entrant: Entrant, index: int, runner: Prepared, truth: Truth, folder: Path) -> Row:
    """Its row, with its errors: the largest over batches that begin at different rows of the reference.

    A graph that replays what it saw when it was captured is found out by that, and the error at every batch size is one
    over all the rows: a single row's rounding errors are luck.
    """
    row = Row(
        batch=entrant.batch,
        name=runner.name,
        build=runner.build,
        ours=entrant.ours,
        cuda_graph=runner.captured,
        inputs=runner.inputs,
        runtime=runner.runtime,
        prepare_seconds=entrant.seconds,
        note=runner.note,
    )
    try:
        begins = sorted({1 % truth.reference.rows, *range(0, truth.reference.rows, entrant.batch)}, reverse=True)
        errors = [_errors((entrant, index), truth, first, folder) for first in begins]
    except RunnerFailed as error:
        return msgspec.structs.replace(row, reason=str(error))
    worse, exact = max((e for e, _ in errors), key=_size), [e for _, e in errors if e is not None]
    return msgspec.structs.replace(
        row, error=worse, exact_error=max(exact, key=_size) if exact else None, right=_size(worse) <= truth.bound
    )


def _still_right(place: Place, row: Row, truth: Truth, folder: Path) -> Row:
    """The row, wrong where the output is no longer what it should be after all that timing."""
    try:
        after, _ = _errors(place, truth, 1, folder)
    except RunnerFailed as error:
        return _untimed(msgspec.structs.replace(row, reason=str(error)))
    if _size(after) <= truth.bound:
        return row
    note = f"{row.note} wrong after it was timed".strip()
    return msgspec.structs.replace(row, right=False, error=after, note=note)


def _size(error: Measure) -> float:
    return error.rel_l2 if error.finite and error.rel_l2 is not None else float("inf")


def _errors(place: Place, truth: Truth, first: int, folder: Path) -> tuple[Measure, Measure | None]:
    """Of its output for the rows from `first` on: against fp32, and against float64 where there is that."""
    entrant, index = place
    name = next(iter(truth.reference.outputs))
    found = _output(entrant, index, first, folder)

    def error(reference: Reference) -> Measure:
        expected = reference.at(entrant.batch, first=first)[1][name]
        return measure(expected, found, output=name, sizes={"B": entrant.batch})

    return error(truth.reference), error(truth.exact) if truth.exact is not None else None


def _output(entrant: Entrant, index: int, first: int, folder: Path) -> Any:
    assert entrant.child is not None
    file = folder / "output.npy"
    file.unlink(missing_ok=True)
    entrant.child.ask(Output(runner=index, first=first, file=str(file)), within=TO_TIME, what="give its output")
    return np.load(file, allow_pickle=False)
