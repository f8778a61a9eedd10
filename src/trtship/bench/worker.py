"""A process of one variant's own: `python -m trtship.bench.worker`. See `trtship.bench.protocol`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from trtship.bench.device import Device, Seat, device_of
from trtship.bench.peers import find
from trtship.bench.peers.base import Absent, Peer, Task
from trtship.bench.plan import Plans
from trtship.bench.protocol import (
    Answer,
    Block,
    Calibrate,
    Command,
    Failed,
    Job,
    Loaded,
    Number,
    Output,
    Prepare,
    Prepared,
    Ready,
    Written,
)
from trtship.bench.reasons import reason_of
from trtship.bench.turns import turns_file
from trtship.errors import SourceError
from trtship.processes import keep_stdout
from trtship.session.base import dtype_name
from trtship.sources import LoadedModel, resolve
from trtship.verify import Reference


def main() -> int:
    answers = keep_stdout()
    commands = sys.stdin.buffer

    def say(answer: Answer) -> None:
        answers.write(msgspec.json.encode(answer) + b"\n")
        answers.flush()

    try:
        worker = Worker(msgspec.json.decode(commands.readline(), type=Job))
        say(Loaded())
    except Exception as error:
        say(Failed(reason=reason_of(error)))
        return 1
    for line in commands:
        try:
            say(worker.do(msgspec.json.decode(line, type=Command)))
        except Exception as error:
            say(Failed(reason=reason_of(error)))
    worker.close()
    return 0


class Worker:
    """Does what it is told, one command after the other."""

    def __init__(self, job: Job) -> None:
        import torch  # noqa: F401 - so that its import is not part of the preparation

        self._job = job
        work = job.work
        self._peer: Peer = Plans() if job.peer == Plans.name else find(job.peer)
        self._module = _module_of(job) if self._peer.needs_module else None
        folder = Path(work.reference)
        self._reference = Reference.read(
            lambda name: (folder / name).read_bytes(), inputs=work.inputs, outputs=work.outputs, sizes=work.sizes
        )
        self._feeds, _ = self._reference.at(job.batch)
        self._device: Device = Device()
        self._seats: list[Seat] = []
        self._ends: dict[int, Any] = {}

    def do(self, command: Command) -> Answer:
        match command:
            case Prepare():
                return self._prepare(command)
            case Calibrate():
                timer, call = self._timed(command.runner, end_to_end=command.end_to_end)
                return Number(value=timer.calibrate(call))
            case Block():
                timer, call = self._timed(command.runner, end_to_end=command.end_to_end)
                return Number(value=timer.block(call, command.calls))
            case Output():
                return self._output(command)

    def _prepare(self, command: Prepare) -> Ready:
        job, work = self._job, self._job.work
        _set_precision(work.precision.tf32)
        self._device = device_of(job.device)
        if isinstance(self._peer, Plans):
            self._peer.plans = command.plans
        task = Task(
            module=self._module,
            graph=Path(work.graph),
            inputs=work.inputs,
            outputs=work.outputs,
            precision=work.precision,
            batch=job.batch,
            feeds=self._feeds,
            device=job.device,
            variant=job.variant,
            folder=Path(job.folder),
            turns=turns_file(),
        )
        absent: list[Absent] = []
        try:
            for made in self._peer.runners(task):
                if isinstance(made, Absent):
                    absent.append(made)
                else:
                    self._seats.append(self._device.seat(made))
        except Exception as error:
            if not self._seats:
                raise
            absent.append(Absent(name="", reason=reason_of(error)))
        return Ready(runners=tuple(_prepared(seat) for seat in self._seats), absent=tuple(absent))

    def _timed(self, index: int, *, end_to_end: bool) -> tuple[Device, Any]:
        seat = self._seats[index]
        if not end_to_end:
            return self._device, seat.call
        if index not in self._ends:
            self._ends[index] = self._device.end_to_end(seat, self._feeds)
        return Device(), self._ends[index]  # by the wall clock: it ends on the host

    def _output(self, command: Output) -> Written:
        seat = self._seats[command.runner]
        self._device.feed(seat, self._reference.at(self._job.batch, first=command.first)[0])
        found = self._device.output(seat)
        self._device.feed(seat, self._feeds)
        np.save(command.file, found, allow_pickle=False)
        return Written()

    def close(self) -> None:
        runners = [seat.runner for seat in self._seats]
        self._seats.clear()  # with the graphs that hold what the runners free
        self._ends.clear()
        for runner in runners:
            runner.close()


def _module_of(job: Job) -> Any:
    options = job.work.source
    if options is None:
        raise SourceError("there is no PyTorch model to start from", why="nothing says where it comes from")
    loaded = resolve(options.source).load(options)
    if not isinstance(loaded, LoadedModel):
        raise SourceError("there is no PyTorch model to start from", why=f"{options.source} is an ONNX file")
    return loaded.module


def _set_precision(tf32: bool) -> None:
    """fp32 products in TF32 for everybody, or for nobody. By PyTorch's older switches: torch.compile and others still
    read these, and reading them raises once the newer ones were used (seen with torch 2.11)."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32


def _prepared(seat: Seat) -> Prepared:
    runner = seat.runner
    return Prepared(
        name=runner.name,
        build=runner.build,
        captured=seat.captured,
        inputs=", ".join(dtype_name(tensor) for tensor in runner.inputs.values()),
        runtime=runner.runtime,
        note=seat.note,
    )


if __name__ == "__main__":
    raise SystemExit(main())
