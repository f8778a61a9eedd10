"""What the bench and its workers say to each other: one JSON object a line, over a worker's stdin and stdout.

The worker is told a `Job`, loads what it needs and answers `Loaded`. Each command after that has one answer, or
`Failed`. It ends when its stdin does. Arrays do not travel here: they are `.npy` files in the job's folder.
"""

from __future__ import annotations

from trtship.bench.peers.base import Absent
from trtship.bench.plan import PlanFile
from trtship.sources.options import SourceOptions
from trtship.spec import Precision, Record, TensorSpec


class Work(Record, frozen=True):
    """What everybody runs: where the model comes from (None: nobody needs it), its inputs and outputs, the graph in the
    bundle's precision, and the folder with the reference rows and the sizes that they were made at."""

    source: SourceOptions | None
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    precision: Precision
    graph: str
    reference: str
    sizes: dict[str, int]


class Job(Record, frozen=True):
    """One variant of a peer at one batch; `folder` is for this worker's files."""

    work: Work
    peer: str
    variant: str
    batch: int
    device: str
    folder: str


class Prepare(Record, frozen=True, tag_field="do", tag="prepare"):
    """Build, compile, warm up, capture. From here on the worker uses the GPU, whenever it is asked something."""

    plans: tuple[PlanFile, ...] = ()


class Calibrate(Record, frozen=True, tag_field="do", tag="calibrate"):
    """How many calls should a block of this runner have? The answer is a `Number`."""

    runner: int
    end_to_end: bool


class Block(Record, frozen=True, tag_field="do", tag="block"):
    """Milliseconds a call, over `calls`. The answer is a `Number`."""

    runner: int
    end_to_end: bool
    calls: int


class Output(Record, frozen=True, tag_field="do", tag="output"):
    """What does the thing that is timed make of a batch of the reference's rows, from `first` on? Into `file`."""

    runner: int
    first: int
    file: str


Command = Prepare | Calibrate | Block | Output


class Prepared(Record, frozen=True):
    """One runner that is ready."""

    name: str
    build: int
    captured: bool
    inputs: str
    runtime: str
    note: str


class Loaded(Record, frozen=True, tag_field="is", tag="loaded"):
    pass


class Ready(Record, frozen=True, tag_field="is", tag="ready"):
    runners: tuple[Prepared, ...]
    absent: tuple[Absent, ...] = ()


class Number(Record, frozen=True, tag_field="is", tag="number"):
    value: float


class Written(Record, frozen=True, tag_field="is", tag="written"):
    pass


class Failed(Record, frozen=True, tag_field="is", tag="failed"):
    reason: str


Answer = Loaded | Ready | Number | Written | Failed
