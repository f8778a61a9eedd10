"""What a build in a process of its own is told on stdin, one line, and what it answers on stdout, a line each."""

from __future__ import annotations

from trtship.spec import Precision, Record, ShapeRange, TensorSpec

PLAN, LOG, LAYERS, REPORT = "plan", "log.txt", "layers.json", "report.json"
"""The files that it writes into the job's folder."""


class Job(Record, frozen=True, tag="job"):
    """What `plan_from_onnx` is to be asked, and the folder that its plan goes to."""

    graph: str
    family: str
    inputs: tuple[TensorSpec, ...]
    ranges: dict[str, ShapeRange]
    single: tuple[int, ...]
    precision: Precision
    targets: tuple[str, ...]
    folder: str


class Step(Record, frozen=True, tag="step"):
    """How far it is."""

    done: float
    text: str


class Written(Record, frozen=True, tag="written"):
    """The plan is in its folder."""


class Refused(Record, frozen=True, tag="refused"):
    """An error of ours, and the name of its class."""

    error: str
    what: str
    why: str
    do: str
