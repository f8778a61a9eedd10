"""What a bench leaves: a row for every variant at every batch, and who was faster."""

from __future__ import annotations

import statistics

from trtship.bench.gpu_state import GpuState
from trtship.bench.timing import Timing
from trtship.gpu import Gpu
from trtship.measure import Measure
from trtship.spec import BatchSize, Record


class Row(Record, frozen=True):
    """One variant at one batch. `gpu` is its GPU time, `end_to_end` from pinned host memory back to it. `error` is
    that of what was timed against eager PyTorch in fp32, `exact_error` against float64; `right` is False when `error`
    is over the bundle's bound: such a row wins nothing. Where there is no time, `reason` says why.

    Several builds of one thing have one `name` and a `build` each, from 1. `inputs` are the types of the tensors that
    it starts from on the GPU, and `runtime` is what ran it. `prepare_seconds` is how long its process took to build,
    compile and warm up all of its variants.
    """

    batch: BatchSize
    name: str
    ours: bool
    build: int = 0
    gpu: Timing | None = None
    end_to_end: Timing | None = None
    cuda_graph: bool = False
    error: Measure | None = None
    exact_error: Measure | None = None
    right: bool = False
    inputs: str = ""
    runtime: str = ""
    prepare_seconds: float = 0.0
    reason: str = ""
    note: str = ""

    @property
    def label(self) -> str:
        return f"{self.name} ({self.build})" if self.build else self.name

    @property
    def counts(self) -> bool:
        """Whether it was timed and is right."""
        return self.right and self.gpu is not None


class WatchedState(Record, frozen=True):
    """The GPU `before`, `during` or `after` the timing of a batch."""

    batch: int
    when: str
    state: GpuState | None


class Ratio(Record, frozen=True):
    """How many times as fast as the best peer ours is: `peer_ms / ours_ms`."""

    batch: int
    ratio: float
    ours: str
    ours_ms: float
    peer: str
    peer_ms: float


class BenchReport(Record, frozen=True):
    """All rows, and the GPU as it was meanwhile."""

    model: str
    precision: str
    gpu: Gpu | None
    states: tuple[WatchedState, ...]
    rows: tuple[Row, ...]

    def figures(self, batch: int, *, ours: bool) -> dict[str, float]:
        """GPU milliseconds of every name that is right at a batch; of several builds, the median of their medians."""
        found: dict[str, list[float]] = {}
        for row in self.rows:
            if row.batch == batch and row.ours == ours and row.counts and row.gpu is not None:
                found.setdefault(row.name, []).append(row.gpu.median_ms)
        return {name: statistics.median(times) for name, times in found.items()}

    def ratio(self, batch: int) -> Ratio | None:
        """Ours against the best peer by GPU time; None where either is missing.

        Builds differ, so the comparison leans against us: ours is the median of its builds, and the peer is the fastest
        single row of any, the luckiest of its builds.
        """
        ours = self.figures(batch, ours=True)
        peers = [(r.gpu.median_ms, r.name) for r in self.rows if r.batch == batch and not r.ours and r.counts and r.gpu]
        if not ours or not peers:
            return None
        name = min(ours, key=lambda n: ours[n])
        ms, peer = min(peers)
        return Ratio(batch=batch, ratio=ms / ours[name], ours=name, ours_ms=ours[name], peer=peer, peer_ms=ms)
