"""Two faults of an original that no export can cure, found on the original itself before any exporter runs.

1. It answers the same input in two ways: active dropout, random numbers, a cache or counter that outlives a call.
2. The rows of a batch depend on each other: a batch norm that uses the batch's statistics, a softmax over the batch.

Later checks would see both as a wrong graph, and blame the exporter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from trtship.errors import SourceError, TrtshipError
from trtship.export.original_causes import cause_of_batch_sizes, cause_of_rows, cause_of_two_answers
from trtship.export.original_runs import Feeds, Place, Trial
from trtship.input_values import InputDomain, random_inputs
from trtship.measure import HUGE
from trtship.progress import SILENT, Progress
from trtship.sources import LoadedModel
from trtship.sources.inputs import one_line
from trtship.spec import TensorSpec, batch_letter

ROWS = 3
ROUNDING_MARGIN = 16.0
"""Row differences up to this many times what moving each weight and input by one unit in the last place does are taken
for rounding. Beyond it the float64 run decides, so that the margin saves runs and accuses no model."""
REMAINS = 2.0**-14
"""The share of a float32 difference that must remain in float64: rounding keeps 2^-29 of it, a real one all."""

Outputs = list[np.ndarray]

DRAWS = 16
"""Repetitions for a model that draws random numbers: these may change its answer only now and then."""


@dataclass(frozen=True)
class Company:
    """Inputs in a batch of `size` that have `rows` of the batch under test, at `places`."""

    how: str
    feeds: Feeds
    rows: tuple[int, ...]
    places: tuple[int, ...]
    size: int | None


@dataclass(frozen=True)
class Observed:
    """What a model gives for the batch under test, and for its rows in other company, without what it does not take.

    `repeats` are pairs of answers to the same input: at once, and after other inputs.
    """

    first: Outputs
    others: Mapping[str, Outputs]
    repeats: Sequence[tuple[Outputs, Outputs]]

    def two_answers(self, index: int) -> float | None:
        """How far the answers to the same input are apart in an output; None where that is not defined."""
        found = [apart(a[index], b[index]) for a, b in self.repeats]
        return None if None in found else max(f for f in found if f is not None)

    def rows_apart(self, index: int, company: Sequence[Company]) -> list[tuple[float, Company]]:
        """How far rows of an output are apart in each other company; empty where the output has no batch axis."""
        cases = [case for case in company if case.how in self.others]
        axis = self._batch_axis(index, cases)
        if axis is None:
            return []
        found = [(self._row_apart(index, case, axis), case) for case in cases if case.rows]
        return [(difference, case) for difference, case in found if difference is not None]

    def most_apart(self, index: int, company: Sequence[Company]) -> float | None:
        """The largest of `rows_apart`."""
        return max((difference for difference, _ in self.rows_apart(index, company)), default=None)

    def _row_apart(self, index: int, case: Company, axis: int) -> float | None:
        wanted = np.take(self.first[index], case.rows, axis)
        found = np.take(self.others[case.how][index], case.places, axis)
        return apart(np.moveaxis(wanted, axis, 0), np.moveaxis(found, axis, 0)) if wanted.shape == found.shape else None

    def _batch_axis(self, index: int, cases: Sequence[Company]) -> int | None:
        """The only axis that is as long as the batch is, in batches of different sizes."""
        full = self.first[index].shape
        sizes = {case.size: self.others[case.how][index].shape for case in cases}
        batch = max((size for size in sizes if size), default=0)
        axes = [
            axis
            for axis, size in enumerate(full)
            if size == batch and all(len(s) == len(full) and s[axis] == n for n, s in sizes.items())
        ]
        return axes[0] if len(axes) == 1 and len(sizes) > 1 else None


ALONE = "it is alone"


def check_original(
    model: LoadedModel,
    *,
    traced: Mapping[str, int],
    domains: Mapping[str, InputDomain] | None = None,
    progress: Progress = SILENT,
) -> None:
    """Check that the original answers the same input in one way, and that its rows do not depend on each other.

    Differences that vanish in float64 are rounding and are left. What cannot be told here (a model of one fixed batch,
    an output without a batch axis, NaN) is left to the checks of the graph.

    Args:
        model: the original; only copies of it run.
        traced: the size of each letter of its inputs.
        domains: the values that the inputs may hold; without, ordinary ones.
        progress: is told that the check runs.

    Raises:
        SourceError: the model has one of the two faults, and the error names the likely cause in its code; or it does
            not run at the traced sizes.
    """
    with progress.stage("check the model", "the same input twice, rows in other company"):
        letter = batch_letter(model.inputs)
        for batch in dict.fromkeys((ROWS, traced[letter])) if letter else (None,):
            full, company = _material(model.inputs, traced, letter, batch, domains)
            observed = _observe(lambda: Trial(model), full, company)
            if observed is not None:
                _judge(model, full, company, observed)
                return
        _refuse_failing(model, full, traced)


def _refuse_failing(model: LoadedModel, full: Feeds, traced: Mapping[str, int]) -> None:
    """Raise SourceError where the model does not take the inputs that it would be exported with."""
    try:
        Trial(model).run(full, seed=1)
    except TrtshipError:
        raise
    except Exception as error:
        sizes = ", ".join(f"{letter}={size}" for letter, size in traced.items()) or "its only shape"
        raise SourceError(
            f"the model itself fails at {sizes}",
            why=one_line(error),
            do="choose a --batch or --size range whose MIN, OPT and MAX the model takes",
        ) from error


def _material(
    inputs: Sequence[TensorSpec],
    traced: Mapping[str, int],
    letter: str | None,
    batch: int | None,
    domains: Mapping[str, InputDomain] | None,
) -> tuple[Feeds, list[Company]]:
    """The batch under test, and its rows in other company; for a fixed batch, only another input."""
    sizes = dict(traced) if letter is None or batch is None else {**traced, letter: batch}
    full, strangers = (random_inputs(inputs, sizes, seed=seed, domains=domains) for seed in (1, 2))
    if letter is None or batch is None:
        return full, [Company("another input", strangers, (), (), None)]

    def of(feeds: Feeds, rows: tuple[int, ...]) -> Feeds:
        found = {}
        for spec in inputs:
            array = feeds[spec.name]
            for axis in (axis for axis, size in enumerate(spec.shape) if size == letter):
                array = np.take(array, rows, axis)
            found[spec.name] = array
        return found

    def behind_strangers() -> Feeds:
        found = {}
        for spec in inputs:
            axes = [axis for axis, size in enumerate(spec.shape) if size == letter]
            array = np.array(strangers[spec.name] if axes else full[spec.name])
            if axes:
                into, of_full = (np.moveaxis(a, axes[0], 0) for a in (array, full[spec.name]))
                into[-1] = of_full[0]
            found[spec.name] = array
        return found

    every = tuple(range(batch))
    turned = (*every[1:], 0)
    found = [
        Company("the other rows change", behind_strangers(), (0,), (batch - 1,), batch),
        Company(ALONE, of(full, (0,)), (0,), (0,), 1),
        Company("the rows are in another order", of(full, turned), turned, every, batch),
    ]
    if batch > 2:
        found.append(Company("the batch has 2 rows", of(full, (0, 1)), (0, 1), (0, 1), 2))
    return full, found


def _observe(new: Callable[[], Trial], full: Feeds, company: Sequence[Company]) -> Observed | None:
    """Run everything; None where the model does not take the batch at all. Each run has other random numbers."""
    try:
        first = new().run(full, seed=1)
    except TrtshipError:
        raise
    except Exception:
        return None
    used = new()
    others = {}
    for seed, case in enumerate(company, 2):
        try:
            others[case.how] = used.run(case.feeds, seed=seed)
        except Exception as error:
            try:
                new().run(case.feeds, seed=seed)
            except Exception:
                continue  # the model does not take it
            raise _fails_later(error) from error
    repeats = [(first, _repeated(used, full, seed=99))]
    smallest = next((case.feeds for case in company if case.how == ALONE and case.how in others), full)
    fresh = new()
    once = fresh.run(smallest, seed=100)
    count = DRAWS if fresh.drew else 1
    repeats += [(once, _repeated(fresh, smallest, seed=101 + n)) for n in range(count)]
    if ALONE in others:
        repeats.append((once, others[ALONE]))
    return Observed(first, others, repeats)


def _repeated(trial: Trial, feeds: Feeds, *, seed: int) -> Outputs:
    try:
        return trial.run(feeds, seed=seed)
    except Exception as error:
        raise _fails_later(error) from error


def _judge(model: LoadedModel, full: Feeds, company: Sequence[Company], observed: Observed) -> None:
    """Raises SourceError for the first output that has a fault beyond rounding."""
    rounding = _Rounding(model, full, company, observed)
    for index in range(len(observed.first)):
        found = observed.two_answers(index)
        if found and rounding.remains(found, index, lambda o, i: o.two_answers(i), sums_differ=False):
            raise _two_answers(model, full, index, observed)
    for index in range(len(observed.first)):
        found = observed.most_apart(index, company)
        if found and rounding.remains(found, index, lambda o, i: o.most_apart(i, company)):
            raise _rows(model, full, company, index, observed)


class _Rounding:
    """Tells differences from rounding; what it runs for that is run when it is first needed."""

    def __init__(self, model: LoadedModel, full: Feeds, company: Sequence[Company], observed: Observed) -> None:
        self._model, self._full, self._company, self._observed = model, full, company, observed

    def remains(
        self,
        found: float,
        index: int,
        difference: Callable[[Observed, int], float | None],
        *,
        sums_differ: bool = True,
    ) -> bool:
        """Whether a difference of an output remains in float64.

        Between batches kernels sum in other orders (`sums_differ`): then it must be beyond what rounding explains too,
        since a model may round to float32 in ways that a float64 run does not reach. For a model that does not run in
        float64, that decides about answers to the same input; rows are left to the check of the graph.
        """
        if (sums_differ or self._wide is None) and found <= ROUNDING_MARGIN * (apart(*self._moved(index)) or 0.0):
            return False
        if self._wide is None:
            return not sums_differ  # rows: the check of the graph has to tell
        in_float64 = difference(self._wide, index)
        return in_float64 is not None and in_float64 > REMAINS * found

    def _moved(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self._observed.first[index], self._noise[index]

    @cached_property
    def _noise(self) -> Outputs:
        try:
            return Trial(self._model, moved=True).run(self._full, seed=1)
        except Exception:  # a model that checks its weights: no rounding is known of it
            return self._observed.first

    @cached_property
    def _wide(self) -> Observed | None:
        try:
            return _observe(lambda: Trial(self._model, wide=True), self._full, self._company)
        except SourceError:  # it was found to fail in float64 alone
            return None


def apart(a: np.ndarray, b: np.ndarray) -> float | None:
    """The largest ||a - b|| of a row over the largest ||a|| of one; None with NaN or Inf in either."""
    if a.shape != b.shape:
        return HUGE
    if not a.size:
        return 0.0
    x, y = (np.asarray(v, np.float64).reshape(len(v) if v.ndim else 1, -1) for v in (a, b))
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return None
    difference, size = float(np.linalg.norm(x - y, axis=1).max()), float(np.linalg.norm(x, axis=1).max())
    return difference / size if size else (HUGE if difference else 0.0)


def _amount(difference: float) -> str:
    return f"{difference:.2g} (relative L2)" if difference < HUGE else "more than its own size"


def _two_answers(model: LoadedModel, full: Feeds, index: int, observed: Observed) -> SourceError:
    cause = cause_of_two_answers(model, full)
    at_once = any(apart(a[index], b[index]) for a, b in observed.repeats[1:2])
    when = "run twice on the same input" if at_once else "run on the same input before and after other inputs"
    amount = _amount(observed.two_answers(index) or 0.0)
    return SourceError(
        TWO_WAYS, why=f"its output {model.outputs[index]} differs by {amount} when {when}; {cause.why}", do=cause.do
    )


def _fails_later(error: Exception) -> SourceError:
    return SourceError(
        TWO_WAYS,
        why=f"after a run on other inputs it fails on one that it takes at first: {one_line(error)}",
        do="let its forward keep nothing of a call for the next one (a cache, a mask of the first batch's size)",
    )


def _rows(model: LoadedModel, full: Feeds, company: Sequence[Company], index: int, observed: Observed) -> SourceError:
    found = observed.rows_apart(index, company)
    difference, case = max(found, key=lambda item: item[0])
    batch = max(case.size or 1 for case in company)
    of_one_size = max((apart_by for apart_by, other in found if other.size == batch), default=difference)
    if of_one_size > REMAINS * difference:
        pairs = zip(case.places, case.rows, strict=True)
        places = [(Place(case.feeds, case.size or 1, at), Place(full, batch, row)) for at, row in pairs]
        cause = cause_of_rows(model, places)
    else:
        cause = cause_of_batch_sizes(model, full)
    return SourceError(
        ROWS_DEPEND,
        why=f"in PyTorch itself, a row of its output {model.outputs[index]} changes by {_amount(difference)} when "
        f"{case.how}; {cause.why}",
        do=cause.do,
    )


TWO_WAYS = "the model answers the same input in two ways"
ROWS_DEPEND = "the rows of a batch depend on each other in the original model"
