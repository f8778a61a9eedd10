"""Peers in processes of their own, on the CPU, through the code that a GPU's go through.

A stand-in for the package torch_tensorrt, put ahead on that peer's import path, does what real ones have done: dies,
hangs, raises, answers wrongly, prints where answers go.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import pytest

from trtship.bench import BenchReport, Row, bench
from trtship.bench.original import options_of, original_of
from trtship.bench.peers.torch_tensorrt import TorchTensorRT
from trtship.bundle import Bundle
from trtship.errors import SpecError

Deployed = Callable[[str, str], Path]
STAND_IN = """
import os, sys, time, torch
__version__ = "0"
print("this would break the protocol, if it went where answers go")

class Compiled(torch.nn.Module):
    def __init__(self, exported):
        super().__init__()
        self.inner, self.calls = exported.module(), 0

    def forward(self, x):
        self.calls += 1
        {forward}

class dynamo:
    @staticmethod
    def compile(exported, **options):
        assert not options["attn_bias_is_causal"]
        {compile}
        return Compiled(exported)
"""


def stand_in(folder: Path, *, forward: str = "return self.inner(x)", compile: str = "pass") -> Path:
    package = folder / "site" / "torch_tensorrt"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(STAND_IN.format(forward=forward, compile=compile))
    return folder / "site"


def run(
    deployed: Deployed,
    *,
    against: Sequence[str],
    batches: Sequence[int] = (3,),
    path: Path | None = None,
    within: float = 120,
    together: bool = False,
) -> BenchReport:
    bundle = Bundle.open(deployed("colours", "fp32"))
    options = options_of(bundle)
    return bench(
        bundle,
        original_of(bundle, options),
        options,
        against=against,
        batches=batches,
        builds=0,
        peer_paths={"torch-tensorrt": path} if path is not None else {},
        within=within,
        together=together,
        rounds=3,
        device="cpu",
    )


@pytest.fixture
def one_variant(monkeypatch: pytest.MonkeyPatch) -> int:
    """The stand-in's variants are alike, one process is enough; at this batch the bundle's own plan takes no part."""
    monkeypatch.setattr(TorchTensorRT, "variants", ("",))
    return 5


def rows_of(report: BenchReport, text: str) -> list[Row]:
    found = [row for row in report.rows if text in row.name]
    assert found
    return found


def no_workers_left() -> bool:
    return not [p for p in psutil.Process().children(recursive=True) if "trtship.bench.worker" in " ".join(p.cmdline())]


def test_peers_are_timed_and_checked_at_each_batch_and_ours_has_its_reason(deployed: Deployed) -> None:
    report = run(deployed, against=["eager", "onnxruntime"], batches=[2, 4], together=True)
    for text in ("eager", "onnxruntime"):
        for row, batch in zip(rows_of(report, text), (2, 4), strict=True):
            assert (row.batch, row.reason, row.right, row.inputs) == (batch, "", True, "float32")
            assert row.gpu is not None
            assert row.end_to_end is not None
            assert row.gpu.low_ms <= row.gpu.median_ms <= row.gpu.high_ms
            assert row.error is not None
            assert row.exact_error is not None
            assert 0 < (row.exact_error.rel_l2 or 0) < 1e-6  # float32 against float64: neither equal nor far
            assert row.error.rel_l2 != row.exact_error.rel_l2
    assert all("no GPU 0 here" in row.reason for row in report.rows if row.ours)
    assert [(s.batch, s.when) for s in report.states] == [(b, w) for b in (2, 4) for w in ("before", "during", "after")]
    assert no_workers_left()


def test_a_peer_imports_from_its_own_path_and_what_it_prints_disturbs_nothing(
    deployed: Deployed, tmp_path: Path
) -> None:
    report = run(deployed, against=["torch-tensorrt", "eager"], path=stand_in(tmp_path))
    assert [row.right for row in rows_of(report, "Torch-TensorRT")] == [
        True,
        True,
    ]  # attention as it is, and decomposed
    assert "Torch-TensorRT 0" in rows_of(report, "Torch-TensorRT")[0].runtime
    assert rows_of(report, "eager")[0].right


@pytest.mark.parametrize(
    "forward",
    [
        "return self.inner(x) * 1.01",
        # what a graph does that reads where its inputs lay when it was captured
        "self.first = getattr(self, 'first', None) if hasattr(self, 'first') else self.inner(x); return self.first",
        # right until it is timed
        "return self.inner(x) * (1 if self.calls < 6 else 2)",
    ],
    ids=["off by a hundredth", "frozen", "wrong later"],
)
def test_a_peer_that_is_wrong_is_not_right(deployed: Deployed, tmp_path: Path, one_variant: int, forward: str) -> None:
    path = stand_in(tmp_path, forward=forward)
    report = run(deployed, against=["torch-tensorrt"], batches=[one_variant], path=path)
    assert [row.right for row in report.rows] == [False]
    assert report.rows[0].reason == ""


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ({"compile": "raise ValueError('no such operator')"}, "ValueError: no such operator"),
        (
            {"compile": "sys.stderr.write('out of luck\\n'); sys.stderr.flush(); os._exit(7)"},
            "exit code 7; its last words",
        ),
        ({"compile": "os.kill(os.getpid(), 11)"}, "SIGSEGV"),
        ({"compile": "time.sleep(600)"}, "did not get ready within"),
    ],
    ids=["raises", "exits", "segfaults", "hangs"],
)
def test_a_peer_that_fails_is_a_row_with_its_reason(
    deployed: Deployed, tmp_path: Path, one_variant: int, broken: dict[str, str], reason: str
) -> None:
    within = 8 if "within" in reason else 120
    path = stand_in(tmp_path, **broken)
    (row,) = run(deployed, against=["torch-tensorrt"], batches=[one_variant], path=path, within=within).rows
    assert reason in row.reason
    assert (row.right, row.gpu, row.end_to_end) == (False, None, None)
    assert no_workers_left()


def test_one_that_dies_while_it_is_timed_does_not_disturb_the_others(
    deployed: Deployed, tmp_path: Path, one_variant: int
) -> None:
    path = stand_in(tmp_path, forward="os._exit(3) if self.calls > 8 else None; return self.inner(x)")
    report = run(deployed, against=["torch-tensorrt", "eager"], batches=[one_variant], path=path)
    assert "exit code 3" in rows_of(report, "Torch-TensorRT")[0].reason
    assert rows_of(report, "eager")[0].right


def test_a_path_for_a_peer_that_takes_no_part_and_one_that_is_no_folder_are_refused(
    deployed: Deployed, tmp_path: Path
) -> None:
    with pytest.raises(SpecError, match="takes no part"):
        run(deployed, against=["eager"], path=tmp_path)
    with pytest.raises(SpecError, match="is no folder"):
        run(deployed, against=["torch-tensorrt"], path=tmp_path / "absent")


INTERRUPTED = """
import sys, pathlib
sys.path.insert(0, {tests!r})
from trtship.bench import bench
from trtship.bench.original import options_of, original_of
from trtship.bundle import Bundle
bundle = Bundle.open({bundle!r})
options = options_of(bundle)
print("begun", flush=True)
bench(bundle, original_of(bundle, options), options, against=["torch-tensorrt"], batches=[3], builds=0,
      peer_paths={{"torch-tensorrt": pathlib.Path({site!r})}}, device="cpu")
"""


def test_ctrl_c_ends_every_worker(deployed: Deployed, tmp_path: Path) -> None:
    marker = tmp_path / "preparing"
    site = stand_in(tmp_path, compile=f"open({str(marker)!r}, 'w').close(); time.sleep(600)")
    code = INTERRUPTED.format(tests=str(Path(__file__).parent), bundle=str(deployed("colours", "fp32")), site=str(site))
    process = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "TMPDIR": str(tmp_path)})
    try:
        until = time.monotonic() + 120
        while not marker.exists() and process.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
        workers = psutil.Process(process.pid).children(recursive=True)
        assert marker.exists()
        assert workers
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) != 0
        _, alive = psutil.wait_procs(workers, timeout=20)
        assert not alive
        assert not list(tmp_path.glob("trtship-bench-*"))
    finally:
        process.kill()
        process.wait()
