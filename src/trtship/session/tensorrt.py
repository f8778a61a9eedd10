"""Run a TensorRT plan: arrays of the GPU in place, on the caller's stream; those of the host through pinned memory."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from trtship.errors import GpuFaultError, GpuMemoryError, InputError, TrtshipError
from trtship.family import Engine, Family
from trtship.gpu import Gpu
from trtship.kept import KEPT, NONE
from trtship.leak import leak
from trtship.session.arrays import Array, kind_of
from trtship.session.base import CLOSED, Session
from trtship.session.call import Call
from trtship.session.cuda import Cuda
from trtship.session.device import gpu_at
from trtship.session.kernel_store import KernelStore
from trtship.session.lane import Lane
from trtship.session.mapping import Pending, in_order
from trtship.session.memory import Ledger, Memory
from trtship.session.pipe import Pipe
from trtship.session.plans import Plan, Plans
from trtship.session.pool import Pool, PoolClosedError
from trtship.session.rig import Rig
from trtship.session.runs import Runs
from trtship.spec import SizeRule, TensorSpec

LOST = "lost"
TARGETS = 8
"""Kinds of `out=` that a call remembers."""
KEEP_EVERY = 30.0
"""Seconds from one time that kernels are kept to the next."""
T = TypeVar("T")


class TensorRTSession(Session):
    """A plan, loaded on one GPU.

    `plan` must be bytes whose hash was checked: deserializing runs code; `digest` is that SHA-256, where it is known.
    `outputs` and `inputs` may be given to name the dynamic sizes as the model does; otherwise the plan's own shapes
    stand. `tf32` is as the plan was built. Kernels that are compiled on the way are kept in `kernels` for the next
    process.

    It may be called from any number of threads: `max_contexts` calls run at once, each in an execution context with
    memory of its own, and others wait. A context keeps at most `graphs` CUDA graphs (0: none): one for each size, or,
    where there are more sizes than that, one for some, and for buckets that the others are rounded up to
    (`trtship.session.buckets`). `memory_limit` bounds, in MiB, what `memory` counts of the GPU's memory. Where memory
    runs out fewer calls run at once, and where that is not enough a batch is run in smaller parts.

    Raises DependencyError (no cuda-bindings), DeviceError (no GPU, or one that the plan does not fit), GpuMemoryError.
    """

    can_poison = True

    def __init__(
        self,
        plan: bytes,
        family: Family,
        *,
        device: int = 0,
        tf32: bool = True,
        inputs: tuple[TensorSpec, ...] | None = None,
        outputs: tuple[TensorSpec, ...] | None = None,
        digest: str | None = None,
        gpu: Gpu | None = None,
        max_contexts: int = 2,
        memory_limit: float | None = None,
        graphs: int = 64,
        rules: Sequence[SizeRule] = (),
    ) -> None:
        gpu = gpu or gpu_at(device)
        self.device, self.workers = device, max_contexts + 1  # one may wait while the others compute
        self._fault, self._warming = "", threading.Lock()
        self._pipes: list[Pipe] = []
        self._cuda = Cuda(device)
        variables = family.environment(tf32=tf32)
        self.kernels = KernelStore(plan, gpu, runtime=str(family), variables=variables, digest=digest, device=device)
        with self._cuda.selected():
            self._engine: Engine = family.load(plan, tf32=tf32, kernels=self.kernels.load(), owner=self.kernels.owner)
        self.inputs = inputs or self._engine.inputs
        self.outputs = outputs or self._engine.outputs
        self.ranges, self.rules = self._engine.ranges_of(self.inputs), tuple(rules)
        self.runtime = f"{family} on {gpu.name}"
        self._keeper = _Keeper(self.kernels, self._engine)
        self._rig = rig = Rig(
            self._cuda,
            self._engine,
            Ledger(memory_limit),
            inputs=self.inputs,
            outputs=self.outputs,
            graphs=graphs,
            settles=family.is_rtx,
            on_kernels=self._keeper,
        )
        self._plans = Plans(self.inputs, self.outputs, self.ranges, self._engine, graphs=graphs, rules=self.rules)
        self._lanes: Pool[Lane] = Pool(partial(Lane, rig), most=max(1, max_contexts), retire=Lane.give_up)
        self._runs = Runs(rig, self._lanes, self._plans, self._pipes)
        self.steady_after = self._runs.turns - 1
        try:
            rig.ledger.take("engine", self._engine.size)
            if self.kernels.state != KEPT:  # a plan that this GPU cannot run is told now, unless it ran here before
                self._try()
        except BaseException:
            self.close()
            raise

    def _try(self) -> None:
        """Make a context for the usual sizes; for the least, where memory has no room for those."""
        least, usual = (tuple(self._engine.profiles[0][s.name][which] for s in self.inputs) for which in (0, 1))
        try:
            self._runs.learn(usual)
        except GpuMemoryError:
            self._runs.learn(least)

    @property
    def memory(self) -> Memory:
        """What it holds now, in MiB."""
        return self._rig.ledger.memory

    def infer(self, feeds: Mapping[str, Array], *, out: Array | Mapping[str, Array] | None = None) -> dict[str, Array]:
        call, arrays = self._call(feeds)
        if not call.on_gpu:
            return self._start(call, arrays, out)()
        try:
            given = None if out is None else self._targets(call, out)
            return self._runs.on_gpu(call, arrays, given, self.poison)
        except GpuFaultError as error:
            self._lose(error)
            raise
        except PoolClosedError:
            raise self._unusable() from None

    async def ainfer(
        self, feeds: Mapping[str, Array], *, out: Array | Mapping[str, Array] | None = None
    ) -> dict[str, Array]:
        call, _ = self._call(feeds)
        if not self._runs.is_learned(call):  # a context is to be made, which may take seconds
            work = partial(self._guarded, partial(self._runs.out_shapes, call))
            await self._in_thread(work)
        return await super().ainfer(feeds, out=out)

    def _warm(self, feeds: Sequence[dict[str, Array]]) -> None:
        """In every context that memory has room for. Calls of other threads wait meanwhile."""
        calls = [self._call(some) for some in feeds]
        with self._warming:  # whoever waits here holds no context
            self._guarded(partial(self._runs.warm, calls))

    def layer_times(self, feeds: Mapping[str, Array], *, runs: int = 20) -> dict[str, float]:
        """Milliseconds of each layer, the median of `runs`, by its name in the engine inspector; `feeds` as for
        `infer`, on the host. The session is slower from then on: use it for nothing else.

        Raises InputError, DeviceError."""
        self._rig.graphs = 0
        with self._cuda.selected():
            self._runs.trim()
        self.infer(feeds)
        self.infer(feeds)  # the first run of a size may still meet kernels that are about to be replaced
        call, _ = self._call(feeds)
        with self._cuda.selected(), self._lanes.one() as lane:
            times = lane.context(self._plans.piece(call.shapes)).record_layers()
        for _ in range(runs):
            self.infer(feeds)
        return times.medians

    def map(self, batches: Iterable[Mapping[str, Array]], *, ahead: int = 2) -> Iterator[dict[str, Array]]:
        """As of any session. Batches of the host pass through pinned memory, `ahead + 1` batches of it."""
        if self.unusable:
            raise self._unusable()
        ahead = max(ahead, 0)
        pipe = self._runs.take_pipe(ahead + 1)
        results = in_order(partial(self._submit_to, pipe), batches, ahead=ahead)
        try:
            yield from results
        except GpuFaultError as error:
            self._lose(error)
            raise
        finally:
            results.close()
            with suppress(TrtshipError):
                self._runs.give_pipe(pipe, reuse=not self.unusable)

    def _submit_to(self, pipe: Pipe, feeds: Mapping[str, Array]) -> Pending[dict[str, Array]]:
        call, arrays = self._call(feeds)
        try:
            ticket = self._runs.through(pipe, call, arrays, self.poison)
        except GpuFaultError as error:
            self._lose(error)
            raise
        except PoolClosedError:
            raise self._unusable() from None
        return ticket or self._submit(feeds)

    def _start(self, call: Call, arrays: list[Array], out: Any) -> Callable[[], dict[str, Array]]:
        return partial(self._guarded, self._guarded(partial(self._way, call, arrays, out)))

    def _way(self, call: Call, arrays: list[Array], out: Any) -> Callable[[], dict[str, Array]]:
        given = None if out is None else self._targets(call, out)
        way = self._runs.prepared if call.on_gpu else self._runs.on_host
        return way(call, arrays, given, self.poison)

    def _targets(self, call: Call, out: Array | Mapping[str, Array]) -> list[Array]:
        """`out` in the outputs' order, checked. Raises OutputError."""
        plan: Plan = call.plan
        kind, outputs = call.kind, self.outputs
        known = False
        with suppress(InputError):  # one that cannot be read is refused below
            known = len(outputs) == 1 and kind_of(out) is kind and kind.key(out) in plan.targets
        if known and kind.is_contiguous(out) and kind.is_writable(out):
            return [out]
        given = self._given(call, out, self._runs.out_shapes(call))
        targets = [given[spec.name] for spec in outputs]
        if len(targets) == 1 and len(plan.targets) < TARGETS:
            plan.targets.add(kind.key(targets[0]))
        return targets

    def _guarded(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except GpuFaultError as error:
            self._lose(error)
            raise
        except PoolClosedError:
            raise self._unusable() from None
        except Exception as error:
            if self.unusable == CLOSED and not isinstance(error, InputError):  # what it ran on was taken away
                raise self._unusable() from error
            raise

    def _fits(self, call: Call, arrays: list[Array]) -> None:
        if call.on_gpu and call.index != self.device:
            raise self._refusal(
                f"the inputs are on cuda:{call.index}, and this session runs on cuda:{self.device}",
                "moving them would cost a copy that you did not ask for",
            )
        call.plan = self._plans.plan(call)

    def _lose(self, error: GpuFaultError) -> None:
        """Nothing that the GPU holds for this process can be trusted, or freed, any more."""
        if self.unusable != LOST:
            self.unusable, self._fault = LOST, error.what

    def _unusable(self) -> TrtshipError:
        if self.unusable == LOST:
            return GpuFaultError(
                "this session is lost, and so is all that this process does on that GPU",
                why=self._fault,
                do="start the process again, and load the bundle there",
            )
        return super()._unusable()

    def _release(self) -> None:
        lanes = self._lanes.close()  # waits for who runs
        try:
            if not self._fault:
                self._free(lanes)
                return
        except GpuFaultError as error:  # nobody had called it since
            self._fault = error.what
        leak(lanes, self._pipes, self._rig, self._engine)  # CUDA takes nothing back; TensorRT would end the process

    def _free(self, lanes: list[Lane]) -> None:
        with self._cuda.selected():
            self._cuda.settle()  # tells whether CUDA still works, before TensorRT is asked anything
            with suppress(Exception):  # kernels that cannot be kept are compiled again
                self._keeper.last()  # while the contexts have them
            self._runs.free(lanes)
            self._engine.close()

    def __del__(self) -> None:
        if not sys.is_finalizing() and hasattr(self, "_runs"):
            with suppress(Exception):
                self.close()


class _Keeper:
    """Keeps kernels that were compiled, for the next process: at the start (not `settled`) only where none were kept,
    later on once in a while, since it takes time."""

    def __init__(self, kernels: KernelStore, engine: Engine) -> None:
        self._kernels, self._engine = kernels, engine
        self._lock, self._ran = threading.Lock(), False

    def __call__(self, settled: bool) -> None:
        kernels = self._engine.kernels
        with self._lock:
            self._ran = True
            if settled:
                self._keep(kernels.age > KEEP_EVERY and kernels.may_have_more)
            else:
                self._keep(self._kernels.state != KEPT)

    def last(self) -> None:
        """At the end: with those that were compiled in the background. A session without a context compiled none."""
        with self._lock:
            self._keep(self._ran and (self._engine.kernels.may_have_more or self._kernels.state == NONE))

    def _keep(self, wanted: bool) -> None:
        if self._engine.kernels.discarded:
            self._kernels.forget()
        if wanted:
            self._kernels.keep(self._engine.kernels.serialized())
