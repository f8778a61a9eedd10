"""The process that a plan is built in: `python -m trtship.engine.build_process`. See `trtship.engine.apart`."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import IO

import msgspec

from trtship.engine.build import plan_from_onnx
from trtship.engine.build_messages import LAYERS, LOG, PLAN, REPORT, Job, Refused, Step, Written
from trtship.errors import TrtshipError
from trtship.family import choose_family
from trtship.files import writing
from trtship.processes import keep_stdout
from trtship.progress import Progress
from trtship.spec import to_json


class _Tell(Progress):
    def __init__(self, answers: IO[bytes]) -> None:
        self._answers = answers

    def step(self, done: float, text: str = "") -> None:
        tell(self._answers, Step(done=done, text=text))


def tell(answers: IO[bytes], message: Step | Written | Refused) -> None:
    answers.write(msgspec.json.encode(message) + b"\n")
    answers.flush()


def main() -> int:
    """One build, as the job on stdin says."""
    answers = keep_stdout()
    job = msgspec.json.decode(sys.stdin.buffer.readline(), type=Job)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        _build(job, _Tell(answers))
    except TrtshipError as error:
        tell(answers, Refused(error=type(error).__name__, what=error.what, why=error.why, do=error.do))
        return 1
    tell(answers, Written())
    return 0


def _build(job: Job, progress: Progress) -> None:
    family, _ = choose_family(job.family, tf32=job.precision.tf32)
    plan = plan_from_onnx(
        Path(job.graph),
        family=family,
        inputs=job.inputs,
        ranges=job.ranges,
        single=job.single,
        precision=job.precision,
        targets=job.targets,
        progress=progress,
    )
    folder = Path(job.folder)
    with writing(folder / PLAN):
        (folder / PLAN).write_bytes(plan.data)
        (folder / LOG).write_text(plan.log)
        (folder / LAYERS).write_bytes(to_json(plan.layers))
        (folder / REPORT).write_bytes(to_json(plan.report))


def _end_with_parent() -> None:
    """TensorRT cannot be interrupted from another thread at once, and nobody waits for this plan any more."""
    while os.read(0, 1024):  # not through sys.stdin: its lock would be held when the interpreter ends
        pass
    os._exit(1)


if __name__ == "__main__":
    raise SystemExit(main())
