"""What runs tensors: one protocol over torch, onnxruntime and TensorRT.

A backend sets `runtime`, `inputs`, `outputs` (and `ranges`, where it accepts only some sizes) and overrides `_run`;
everything that a caller can get wrong is checked here, once for each combination of dtypes, shapes and places.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from abc import ABC
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from operator import index
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np

from trtship.errors import ForkedError, InputError, OutputError, TrtshipError
from trtship.session.arrays import NUMPY, Array, kind_of
from trtship.session.call import Call
from trtship.session.checks import apart, checked, out_fault, refusal
from trtship.session.forks import FORKED, watch
from trtship.session.mapping import Done, Pending, in_order
from trtship.session.memory import Memory
from trtship.session.split import splits_by
from trtship.spec import ShapeRange, SizeRule, TensorSpec, batch_letter

__all__ = ["Array", "Session", "dtype_name", "is_torch"]

T = TypeVar("T")
CLOSED = "closed"
CALLS = 256
"""Combinations of dtypes, shapes and places that are remembered."""


def is_torch(array: Array) -> bool:
    """Whether it is a torch tensor; where torch was never imported, nothing is. Nor is anything while another thread
    imports it: its module is there before its contents are."""
    tensor = getattr(sys.modules.get("torch"), "Tensor", None)
    return tensor is not None and isinstance(array, tensor)


def dtype_name(array: Array) -> str:
    """`"float32"`, `"bfloat16"` ... of a numpy array or a torch tensor."""
    return str(array.dtype).removeprefix("torch.")


class Session(ABC):
    """Runs named tensors through a model; a context manager.

    Results are of the caller's kind: numpy arrays in, numpy arrays out; torch, CuPy and JAX arrays in, the same out, on
    the same device, never by way of the host. Nothing is converted: a wrong dtype or shape is refused. A batch beyond
    the largest that is taken is run in parts, where a row of the inputs makes a row of the outputs.
    """

    runtime: str
    """What runs, for people: `"onnxruntime 1.32.0, CPU"`."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    ranges: Mapping[str, ShapeRange] = {}
    """The sizes that each letter of the inputs' shapes may take; a letter that is absent may take any."""
    rules: tuple[SizeRule, ...] = ()
    """Conditions on sizes within the ranges: other sizes are refused, since the graph is not the model there."""
    can_poison: bool = False
    """Whether its outputs go to memory that outlives a run, and that `poison` can fill."""
    poison: bool = False
    """Set it to fill that memory with bytes of 0xFF before each run: NaN in every floating type, -1 in integers. What
    a run leaves unwritten is then seen."""
    unusable: str = ""
    """Empty while it may be called; "closed", "forked", or what became of its GPU."""

    steady_after: int = 0
    """Runs of one size before the first that all later ones are like: a plan that runs, is then captured in a CUDA
    graph and replayed from there on has 2, and 3 where batches are rounded up."""
    workers: int = 1
    """Threads that `ainfer` may use."""

    _calls: dict[Any, Call]
    _of: tuple[Any, Any] = (None, None)
    _names: tuple[str, ...] = ()
    _threads: ThreadPoolExecutor | None = None
    _opening: threading.Lock
    _noting: threading.Lock

    def __new__(cls, *_: Any, **__: Any) -> Self:
        self = super().__new__(cls)  # backends need not call an __init__ of ours
        self._calls = {}
        self._opening, self._noting = threading.Lock(), threading.Lock()
        watch(self)
        return self

    def infer(self, feeds: Mapping[str, Array], *, out: Array | Mapping[str, Array] | None = None) -> dict[str, Array]:
        """Outputs by name. `out` is an array for the one output, or arrays by name, of the inputs' kind and place, to
        write the results into; they are what is returned.

        On a GPU the work is ordered on the caller's current stream, as that of any operator is.

        Raises InputError, with the specs in it, when `feeds` are not what `inputs` say, and where JAX would cut results
        of 64 bits to 32 (`jax_enable_x64`); OutputError for an `out` that does not fit; GpuFaultError from the moment
        that the GPU does no more work; ForkedError.
        """
        call, arrays = self._call(feeds)
        return self._start(call, arrays, out)()

    async def ainfer(
        self, feeds: Mapping[str, Array], *, out: Array | Mapping[str, Array] | None = None
    ) -> dict[str, Array]:
        """As `infer`, without keeping the event loop from its other work. Cancelling it forgets the results; a run that
        has begun comes to its end."""
        call, arrays = self._call(feeds)
        return await self._in_thread(self._start(call, arrays, out))

    def map(self, batches: Iterable[Mapping[str, Array]], *, ahead: int = 2) -> Iterator[dict[str, Array]]:
        """The outputs of each of `batches`, in order. A plan on a GPU takes and runs up to `ahead` more meanwhile:
        copies to and from the GPU go on beside the computing. An array may be filled anew once the next is asked for.
        What an item raises is raised in its turn."""
        return in_order(self._submit, batches, ahead=0)

    def warm_up(self, batches: Iterable[int] | None = None, *, sizes: Mapping[str, int] | None = None) -> None:
        """Run zeros until all that is made at first use is there: contexts, buffers, CUDA graphs.

        Args:
            batches: The batch sizes to run (default: the one that is optimized for).
            sizes: The sizes of the other dynamic dimensions, by letter (default: those optimized for).

        Raises:
            InputError: `batches` are no batch sizes, or a dynamic dimension has no size.
        """
        letter = batch_letter(self.inputs)
        usual = {**{name: r.opt for name, r in self.ranges.items()}, **(sizes or {})}
        missing = {name for spec in self.inputs for name in spec.letters} - usual.keys() - {letter}
        if missing:
            name = min(missing)
            raise self._refusal(
                f"warm_up needs a size for {name}", f"this session takes any; say warm_up(sizes={{{name!r}: ...}})"
            )
        every = [usual.get(letter or "", 1)] if batches is None else _sizes(batches)
        self._warm([self._zeros({**usual, letter: batch} if letter else usual) for batch in every])

    def _warm(self, feeds: Sequence[dict[str, Array]]) -> None:
        for some in feeds:
            for _ in range(1 + self.steady_after):
                self.infer(some)

    def _zeros(self, sizes: Mapping[str, int]) -> dict[str, Array]:
        return {spec.name: np.zeros(spec.with_sizes(sizes), NUMPY.host_dtype(spec.dtype)) for spec in self.inputs}

    @property
    def memory(self) -> Memory:
        """What it holds, in MiB; all zero where nobody counts."""
        return Memory()

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run checked feeds: all numpy, or all torch on one device; perhaps not contiguous, perhaps with grad."""
        raise NotImplementedError

    def close(self) -> None:
        """Free what the session holds. May be called twice; `infer` raises InputError from then on."""
        with self._opening:
            before, threads, self._threads = self.unusable, self._threads, None
            if before in (CLOSED, FORKED):
                return
            self.unusable = CLOSED
        if threads is not None:
            threads.shutdown(wait=threading.current_thread() not in getattr(threads, "_threads", ()))
        self._release()

    def _release(self) -> None:  # noqa: B027 - most backends hold nothing beyond their attributes
        """Free a backend's own resources; called once."""

    def forked(self) -> None:
        """Called in a child of the process: it may be used no more, and nothing of it be freed."""
        self.unusable, self._threads = FORKED, None
        self._opening, self._noting = threading.Lock(), threading.Lock()

    def __reduce__(self) -> Any:
        raise InputError(
            "a session cannot be sent to another process",
            why="what it holds belongs to this one",
            do="send the bundle's path, and load it there",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # what the backends of `session/` build on

    def _call(self, feeds: Mapping[str, Array]) -> tuple[Call, list[Array]]:
        """What is called with, and its arrays in the inputs' order. Raises InputError."""
        if self.unusable:
            raise self._unusable()
        if self._of[0] is not self.inputs or self._of[1] is not self.ranges:
            with self._noting:
                self._calls.clear()
                self._names = tuple(spec.name for spec in self.inputs)
                self._of = (self.inputs, self.ranges)  # last: other threads look at it without the lock
        if type(feeds) is not dict and not isinstance(feeds, Mapping):
            raise self._refusal(f"the feeds are a {type(feeds).__name__}", "infer takes a dict of arrays by name")
        names, key = self._names, None
        try:
            arrays = [feeds[name] for name in names]
            if len(feeds) == len(names):
                kind = kind_of(arrays[0])
                key = (kind, *[kind.key(array) for array in arrays]) if kind else None
                call = self._calls.get(key)
                if call is not None and (len(names) == 1 or all(kind_of(array) is kind for array in arrays)):
                    return call, arrays
        except (
            KeyError,
            AttributeError,
            TypeError,
            BufferError,
            RuntimeError,
            InputError,
        ):  # names, or kinds, or no sizes
            key = None
        letter = splits_by(self.inputs, self.outputs, self.ranges)
        call = checked(self.inputs, self.ranges, feeds, letter=letter, rules=self.rules)
        arrays = [feeds[name] for name in names]
        call.kind.check_results(self.outputs)
        self._fits(call, arrays)
        if key is not None:
            with self._noting:
                if len(self._calls) >= CALLS:
                    del self._calls[next(iter(self._calls))]
                self._calls[key] = call
        return call, arrays

    def _fits(self, call: Call, arrays: list[Array]) -> None:
        """Raises InputError for arrays in a place that the backend does not read."""
        if call.on_gpu and not is_torch(arrays[0]):
            raise self._refusal(
                f"the inputs are on the GPU, as {call.kind.name}, and this runs on {self.runtime}",
                "moving them would cost a copy that you did not ask for",
            )

    def _start(self, call: Call, arrays: list[Array], out: Any) -> Callable[[], dict[str, Array]]:
        """All that must be done in the caller's thread; what is left to do, in any."""
        return partial(self._plainly, call, arrays, out)

    def _submit(self, feeds: Mapping[str, Array]) -> Pending[dict[str, Array]]:
        """Do one item of `map`."""
        call, arrays = self._call(feeds)
        return Done(self._start(call, arrays, None)())

    def _executor(self) -> ThreadPoolExecutor:
        with self._opening:
            if self.unusable:
                raise self._unusable()
            if self._threads is None:
                self._threads = ThreadPoolExecutor(self.workers, thread_name_prefix="trtship-session")
            return self._threads

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """What `work` returns, from a thread of the session's. Raises InputError where it is closed meanwhile."""
        threads = self._executor()
        try:
            future = asyncio.get_running_loop().run_in_executor(threads, work)
        except RuntimeError:  # "cannot schedule new futures after shutdown"
            if self.unusable:
                raise self._unusable() from None
            raise
        return await future

    def _plainly(self, call: Call, arrays: list[Array], out: Any) -> dict[str, Array]:
        """Through `_run`, which knows numpy and torch; other arrays on the host are numpy's views of them there."""
        kind, foreign = call.kind, call.kind is not NUMPY and not is_torch(arrays[0])
        taken = [kind.host(array) for array in arrays] if foreign else arrays
        parts, begin = [], 0
        for rows in call.parts:
            end, whole = begin + rows, len(call.parts) == 1
            some = [
                array if whole or spec.shape[:1] != self.inputs[0].shape[:1] else array[begin:end]
                for spec, array in zip(self.inputs, taken, strict=True)
            ]
            try:
                parts.append(self._run(dict(zip(self._names, some, strict=True))))
            except Exception as error:
                if self.unusable == CLOSED and not isinstance(error, InputError):  # what it ran on was taken away
                    raise self._unusable() from error
                raise
            begin = end
        results = parts[0] if len(parts) == 1 else {name: _joined([part[name] for part in parts]) for name in parts[0]}
        if foreign:
            results = {spec.name: kind.wrap(results[spec.name], spec.dtype) for spec in self.outputs}
        if out is None:
            return results
        given = self._given(call, out, {name: tuple(array.shape) for name, array in results.items()})
        if not call.on_gpu:
            apart([kind.host(array) for array in arrays], [kind.host(array) for array in given.values()])
        for name, array in results.items():
            if is_torch(array):
                given[name].copy_(array)
            else:
                kind.host(given[name])[...] = kind.host(array)
        return given

    def _given(
        self, call: Call, out: Array | Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]]
    ) -> dict[str, Array]:
        """`out` by name, checked. Raises OutputError."""
        given = dict(out) if isinstance(out, Mapping) else {spec.name: out for spec in self.outputs[:1]}
        names = {spec.name for spec in self.outputs}
        if given.keys() != names:
            raise OutputError("out= does not have the outputs", why=f"they are {', '.join(sorted(names))}")
        for spec in self.outputs:
            array = given[spec.name]
            fault = out_fault(array, spec, shapes[spec.name], call)
            if fault:
                raise OutputError(
                    f"out= does not fit {spec.name}",
                    why=fault,
                    do=f"it takes {call.kind.name}, {spec.dtype} {list(shapes[spec.name])}, contiguous and writable",
                )
        return given

    def _refusal(self, what: str, why: str) -> InputError:
        return refusal(self.inputs, what, why)

    def _unusable(self) -> TrtshipError:
        if self.unusable == FORKED:
            return ForkedError(
                "this session was opened before the process forked",
                why="CUDA, and the threads of a runtime, do not come along into a forked child",
                do="open it in the child, or start processes by spawn (multiprocessing.get_context('spawn'))",
            )
        return InputError("this session is closed", why="infer() was called after close()", do="open another one")


def _sizes(batches: Iterable[int]) -> list[int]:
    """Batch sizes that a caller gave. Raises InputError."""
    try:
        found = [int(index(batch)) for batch in batches]
    except TypeError:
        found = [0]
    if min(found, default=1) < 1:
        raise InputError(
            "warm_up takes batch sizes", why=f"{batches!r} is no list of them", do="session.warm_up([1, 8, 32])"
        )
    return found


def _joined(arrays: list[Array]) -> Array:
    return sys.modules["torch"].cat(arrays) if is_torch(arrays[0]) else np.concatenate(arrays)
