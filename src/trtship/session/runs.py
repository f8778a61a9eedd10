"""The ways through a plan: on arrays of the GPU, on arrays of the host, and streams of them; and what is done where
memory runs out."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import numpy as np

from trtship.errors import GpuMemoryError, InputError
from trtship.session.arrays import Array
from trtship.session.call import Call
from trtship.session.checks import apart, overlap
from trtship.session.lane import Lane
from trtship.session.pipe import Pipe, Ticket
from trtship.session.plans import Addresses, Plan, Plans
from trtship.session.pool import Pool
from trtship.session.rig import Rig

T = TypeVar("T")
WARM = 3
"""Runs of a size on a lane: eagerly, captured, replayed. One more where batches are rounded up: twice as the larger
batch, captured as itself, replayed."""
HELD = 2
"""Runs of a lane whose inputs are held for them: one that the GPU is at, and the next, so that it need not wait."""
RELIEFS = 3
"""How often contexts and graphs are given up for others before fewer calls run at once, and then before batches are
made smaller."""


class Runs:
    """What a TensorRT session does once its arrays are checked."""

    def __init__(self, rig: Rig, lanes: Pool[Lane], plans: Plans, pipes: list[Pipe]) -> None:
        self._rig, self._cuda, self._lanes, self._plans, self._pipes = rig, rig.cuda, lanes, plans, pipes
        self._names = tuple(spec.name for spec in rig.outputs)
        self._reliefs = 0
        self.turns = WARM + plans.rounds
        self._foreign, self._opening = 0, threading.Lock()

    # arrays of the GPU

    def on_gpu(self, call: Call, arrays: list[Array], given: list[Array] | None, poison: bool) -> dict[str, Array]:
        """Enqueue a call on the caller's stream. The way of every call that is the same as one before: short."""
        kind, cuda = call.kind, self._cuda
        before = cuda.switch()
        try:
            plan: Plan = call.plan
            piece = plan.piece
            if piece is None or not piece.is_known or kind.keeps:
                return self.prepared(call, arrays, given, poison)()
            device = cuda.device
            stream = kind.stream(arrays[0], device)
            if stream is None or (stream > 1 and cuda.is_capturing(stream)):
                return self.prepared(call, arrays, given, poison)()
            taken = [kind.address(array, stream, cuda) for array in arrays]
            if given is None:
                rooms = [
                    kind.empty(shape, native, device, cuda)
                    for shape, native in zip(piece.out_shapes, plan.natives, strict=True)
                ]
            else:
                rooms = [(array, kind.address(array, stream, cuda)[0]) for array in given]
            ins, outs = tuple([one[0] for one in taken]), tuple([room[1] for room in rooms])
            if given is not None and plan.writes_over(ins, outs):
                raise overlap()
            lanes = self._lanes
            lane = lanes.take()
            try:
                if lane.held:
                    lane.settle()
                lane.run(piece, ins, outs, stream, poison=poison)
                fits = True
            except GpuMemoryError:
                fits = False
            finally:
                lanes.give(lane)
            if not fits:
                self._attempt(call, partial(self._enqueue, call, ins, outs, stream, None, poison))
            return {name: kind.finish(room[0], stream) for name, room in zip(self._names, rooms, strict=True)}
        finally:
            cuda.back(before)

    def prepared(
        self, call: Call, arrays: list[Array], given: list[Array] | None, poison: bool
    ) -> Callable[[], dict[str, Array]]:
        """The same in two: what needs the caller's thread is done here, the rest may be done in any."""
        kind, cuda = call.kind, self._cuda
        with cuda.selected():
            stream = kind.stream(arrays[0], cuda.device)
            if stream is None:
                stream = self._own_stream()
            elif stream > 1 and cuda.is_capturing(stream):
                raise InputError(
                    "this session cannot be called while a CUDA graph is captured",
                    why="it replays graphs of its own, whose memory it exchanges and frees as it goes",
                    do="call it beside your graph",
                )
            plan = self._learned(call)
            taken = [kind.address(array, stream, cuda) for array in arrays]
            if given is not None:
                rooms = [(array, kind.address(array, stream, cuda)[0]) for array in given]
            else:
                rooms = [
                    kind.empty(shape, native, cuda.device, cuda)
                    for shape, native in zip(plan.out_shapes, plan.natives, strict=True)
                ]
        ins, outs = tuple(address for address, _ in taken), tuple(address for _, address in rooms)
        if given is not None and plan.writes_over(ins, outs):
            raise overlap()

        def work() -> dict[str, Array]:
            with cuda.selected():
                self._attempt(call, partial(self._enqueue, call, ins, outs, stream, taken, poison))
                for array in arrays:
                    kind.read(array, stream)
                if given is not None:
                    for array in given:
                        kind.written(array, stream, cuda)
                    return dict(zip(self._names, given, strict=True))
                return {name: kind.finish(room, stream) for name, (room, _) in zip(self._names, rooms, strict=True)}

        return work

    def _enqueue(
        self, call: Call, ins: Addresses, outs: Addresses, stream: int, held: Any, poison: bool, lane: Lane, plan: Plan
    ) -> None:
        lane.settle(most=HELD - 1 if call.kind.keeps else 0)
        for step in plan.steps:  # a plan of smaller parts has pieces that nobody has run
            lane.context(step.piece)
        for step in plan.steps:
            lane.run(step.piece, plan.inputs_of(step, ins), plan.outputs_of(step, outs), stream, poison=poison)
        if call.kind.keeps:
            lane.hold(held)

    def _own_stream(self) -> int:
        """For arrays of packages that have no current stream."""
        with self._opening:
            if not self._foreign:
                self._foreign = self._cuda.create_stream()
            return self._foreign

    # arrays of the host

    def on_host(
        self, call: Call, arrays: list[Array], given: list[Array] | None, poison: bool
    ) -> Callable[[], dict[str, Array]]:
        """What runs a call on arrays of the host, and waits for it."""
        kind = call.kind

        def work() -> dict[str, Array]:
            views = [kind.host(array) for array in arrays]
            targets = None if given is None else [kind.host(array) for array in given]
            if targets is not None:
                apart(views, targets)
            with self._cuda.selected():
                results = self._attempt(call, partial(self._on_lane, call, views, targets, poison))
            if given is not None:
                return dict(zip(self._names, given, strict=True))
            return {
                spec.name: kind.wrap(result, spec.dtype)
                for spec, result in zip(self._rig.outputs, results, strict=True)
            }

        return work

    def _on_lane(
        self,
        call: Call,
        views: list[np.ndarray[Any, Any]],
        targets: list[Any] | None,
        poison: bool,
        lane: Lane,
        plan: Plan,
    ) -> list[np.ndarray[Any, Any]]:
        lane.settle()
        for step in plan.steps:
            lane.context(step.piece)
        results = targets or self._empty(call, plan)
        for step in plan.steps:
            rows = slice(step.begin, step.begin + step.rows)
            whole = plan.piece is not None
            some = [view if whole or not plan.takes_rows(index) else view[rows] for index, view in enumerate(views)]
            parts = results if whole else [result[rows] for result in results]
            lane.run_on_host(step.piece, some, parts, poison=poison)
        return results

    def warm(self, calls: list[tuple[Call, list[Array]]]) -> None:
        """Run calls on arrays of the host until graphs replay them: first as any caller would, then in each lane in
        turn, as far as memory goes. One thread at a time may do so: it holds all lanes at last."""
        works = [(call, [call.kind.host(array) for array in arrays]) for call, arrays in calls]
        with self._cuda.selected():
            for call, views in works:
                for _ in range(self.turns):
                    self._attempt(call, partial(self._on_lane, call, views, None, False))
            lanes = [self._lanes.take()]  # the one that was used last, and is warm
            try:
                while (lane := self._lanes.another(len(lanes))) is not None:
                    lanes.append(lane)
                    for call, views in works:
                        for _ in range(self.turns):
                            self._on_lane(call, views, None, False, lane, call.plan)
            except GpuMemoryError:
                lanes[-1].trim()  # what a lane is half ready for is others' memory
            finally:
                for lane in reversed(lanes):  # the warm one is handed out first again
                    self._lanes.give(lane)

    def _empty(self, call: Call, plan: Plan) -> list[np.ndarray[Any, Any]]:
        shapes = zip(plan.out_shapes, self._rig.outputs, strict=True)
        return [np.empty(shape, call.kind.host_dtype(spec.dtype)) for shape, spec in shapes]

    # streams of them

    def take_pipe(self, depth: int) -> Pipe:
        for pipe in reversed(list(self._pipes)):  # the one that was used last: more of what it needs is there
            if pipe.depth == depth:
                try:
                    self._pipes.remove(pipe)
                except ValueError:  # another thread took it
                    continue
                return pipe
        with self._cuda.selected():
            return Pipe(self._rig, self._lanes, depth=depth)

    def give_pipe(self, pipe: Pipe, *, reuse: bool) -> None:
        with self._cuda.selected():
            pipe.drain()
            if reuse:
                self._pipes.append(pipe)
            else:
                pipe.close()

    def through(self, pipe: Pipe, call: Call, arrays: list[Array], poison: bool) -> Ticket[dict[str, Array]] | None:
        """Start on a call of the host's; None for one that goes another way: of the GPU's, in parts, or too large."""
        plan: Plan = call.plan
        if call.on_gpu or plan.piece is None:
            return None
        kind = call.kind
        views = [kind.host(array) for array in arrays]

        def wrap(results: Any) -> dict[str, Array]:
            return {
                spec.name: kind.wrap(result, spec.dtype)
                for spec, result in zip(self._rig.outputs, results, strict=True)
            }

        with self._cuda.selected():
            try:
                return pipe.start(plan.piece, views, partial(self._empty, call, plan), wrap, poison=poison)
            except GpuMemoryError:
                return None

    # shapes, and memory

    def learn(self, shapes: tuple[tuple[int, ...], ...]) -> None:
        """Make what is needed to run these input shapes. Raises DeviceError."""
        with self._cuda.selected(), self._lanes.one() as lane:
            lane.context(self._plans.piece(shapes))

    def out_shapes(self, call: Call) -> dict[str, tuple[int, ...]]:
        """The outputs' shapes by name."""
        with self._cuda.selected():
            return dict(zip(self._names, self._learned(call).out_shapes, strict=True))

    @staticmethod
    def is_learned(call: Call) -> bool:
        """Whether the outputs' shapes are known."""
        return _knows_shapes(call.plan)

    def _learned(self, call: Call) -> Plan:
        """The call's plan, once it tells the outputs' shapes. (Another thread may give the call one of smaller parts
        at any time.)"""
        plan: Plan = call.plan
        while not _knows_shapes(plan):
            self._attempt(call, self._learn_on)
            plan = call.plan
        return plan

    @staticmethod
    def _learn_on(lane: Lane, plan: Plan) -> None:
        for step in plan.steps:
            lane.context(step.piece)

    def _attempt(self, call: Call, work: Callable[[Lane, Plan], T]) -> T:
        """Do the work by the call's plan; where memory runs out, with what others do not use given up for it, in turn
        with other calls, and then by a plan that takes less. Raises GpuMemoryError where nothing takes less."""
        lanes, relieved, failed = self._lanes, False, False
        while True:
            plan: Plan = call.plan
            retired = lanes.retired
            try:
                with lanes.one() as lane:
                    if failed:  # what this lane has for other sizes may be what is in the way
                        lane.trim()
                    return work(lane, plan)
            except GpuMemoryError as error:
                if not relieved and self._reliefs < RELIEFS:
                    relieved = True
                    self._reliefs += 1
                elif lanes.shrink(retired):
                    relieved, self._reliefs = False, 0
                    self._rig.say(
                        "contexts", f"at most {lanes.most} calls run at once from now on: {error.what} ({error.why})"
                    )
                else:
                    try:
                        self._smaller(call, error)
                    except GpuMemoryError:
                        if failed:  # on a lane that had nothing else
                            raise
                failed = True
                self.trim()

    def _smaller(self, call: Call, error: GpuMemoryError) -> None:
        """Make the call's parts smaller, and say so once. Raises GpuMemoryError where they cannot be."""
        call.plan = smaller = self._plans.smaller(call, call.plan, error)
        self._rig.say(
            "memory",
            f"batches are run in parts of at most {smaller.largest} rows from now on: {error.what} ({error.why})",
        )

    def trim(self) -> None:
        """Free what is not in use: graphs, contexts, buffers."""
        while self._pipes:
            self._pipes.pop().close()
        idle = self._lanes.idle()
        try:
            for lane in idle:
                lane.trim()
        finally:  # all of them, or whoever waits for one would wait for ever
            self._lanes.give_all(idle)

    def free(self, lanes: list[Lane]) -> None:
        """Free everything: these lanes, which nobody holds any more, too. Raises DeviceError."""
        while self._pipes:
            self._pipes.pop().close()
        for lane in lanes:
            lane.close()
        if self._foreign:
            self._cuda.destroy_stream(self._foreign)
            self._foreign = 0


def _knows_shapes(plan: Plan) -> bool:
    return all(step.piece.is_known for step in plan.steps)
