"""Real bundles with every kind of evidence, and a browser to read their reports in."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from browsers import find_chromium, opened

from trtship.bench import BenchReport, Row
from trtship.bench.timing import Timing
from trtship.bundle import Bundle
from trtship.bundle.candidates import CANDIDATES, Candidate, Choice, Latency
from trtship.measure import Measure
from trtship.report import record_bench, write_report
from trtship.spec import Precision, to_json
from trtship.verify import Verdict

RUNTIME = "tensorrt_rtx 1.6.1.120"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """Not for longer: while it is open, Playwright's event loop runs in this thread, and asyncio takes no other."""
    if find_chromium() is None:
        pytest.skip("no Chromium here: make browser installs one")
    with opened() as browser:
        yield browser


@pytest.fixture
def bundle(deployed: Callable[[str, str], Path], tmp_path: Path) -> Bundle:
    """The small Swin in fp16, whose plan has not run."""
    return Bundle.open(shutil.copytree(deployed("swin", "fp16"), tmp_path / "swin.trtship"))


def passing(bundle: Bundle) -> tuple[Verdict, ...]:
    """As a machine with a GPU would have them: the plan's verdicts are those of the graph that it was built from."""
    rest = [v for v in bundle.manifest.verdicts if v.subject != "plan"]
    low = [v for v in rest if v.subject == "graph fp16"]
    return (*rest, *(msgspec.structs.replace(v, subject="plan", runtime=RUNTIME) for v in low))


def failing(bundle: Bundle) -> tuple[Verdict, ...]:
    """A wrong plan, a NaN, a probe without a name of its own, and what no machine ran."""
    *rest, last = [v for v in passing(bundle) if v.gate == "rel_l2"]
    lost = Measure(sizes={"B": 3}, output="logits", finite=False)
    return (
        *rest,
        msgspec.structs.replace(last, state="failed", worst=0.24, reason="logits is off by 0.24 at {'B': 3}"),
        Verdict(subject="plan", gate="swapped_heads", state="failed", reason="NaN <in> logits", measures=(lost,)),
        Verdict(subject="plan", gate="two_contexts", state="not run", reason="no NVIDIA GPU here"),
        Verdict(subject="plan", gate="top1_drop", state="not run", reason="no --eval folder was given"),
    )


def choice() -> Choice:
    """A search with every outcome, one plan that gives NaN, and names too long to stand beside a point."""

    def tried(name: str, precision: str, outcome: Any, ms: float, rel_l2: float | None, **more: Any) -> Candidate:
        latency = tuple(Latency(batch=b, ms=ms * b / 8, low=ms * b / 8.2, high=ms * b / 7.9) for b in (1, 8))
        more = {"latency": latency, **more}
        return Candidate(name=name, precision=Precision(precision), outcome=outcome, rel_l2=rel_l2, **more)

    return Choice(
        rule="The fastest that passes every gate, by its time at batch 8.",
        gates={"--max-drop": 0.5, "--max-rel-l2": 0.05},
        candidates=(
            tried("fp32", "fp32", "passed", 1.4, 3e-7, top1=99.1, drop=0.0, reason="fp16 is faster"),
            tried("fp16", "fp16", "shipped", 0.78, 5e-4, top1=99.0, drop=0.1, plan_mib=5.0, seconds=28.0),
            tried("bf16", "bf16", "passed", 0.8, 4e-3, top1=98.9, drop=0.2),
            tried("int8", "int8", "failed", 1.0, 6e-2, top1=97.7, drop=1.4, slower=("12 reformats: 0.14 ms",)),
            tried("int8 with a name that goes on", "int8", "passed", 0.9, 2e-2, drop=0.4, kept=("a", "b")),
            tried("fp8", "fp8", "failed", 0.7, None, reason="plan, rel_l2: NaN or Inf in logits"),
            Candidate(name="mixed", precision=Precision.INT8, reason="the time allowed was over"),
        ),
        eager=(Latency(batch=8, ms=1.9, low=1.9, high=2.0),),
        timed_on="GPU <1>",
        notes=("Nothing <of note>.",),
        complete=False,
    )


def bench_report() -> BenchReport:
    """Two of ours, more peers than colours, one of them wrong, one not timed."""

    def row(name: str, batch: int, ms: float | None, *, ours: bool = False, right: bool = True, build: int = 0) -> Row:
        timing = None if ms is None else Timing(median_ms=ms, low_ms=ms * 0.99, high_ms=ms * 1.02, rounds=15, calls=9)
        error = Measure(sizes={"B": batch}, output="logits", finite=True, rel_l2=1e-3 * (1 + len(name) / 50))
        reason = "" if ms else "its turn to prepare did not come in time"
        return Row(
            batch=batch, name=name, ours=ours, build=build, gpu=timing, exact_error=error, right=right, reason=reason
        )

    rows = []
    for batch in (1, 32, 128):
        rows += [row("trtship, built for this batch", batch, 0.1 + batch / 20, ours=True, build=n) for n in (1, 2)]
        rows += [row(f"peer, variant {n}", batch, 0.15 + batch / (19 - n)) for n in range(9)]
        rows += [row("fast, wrong", batch, 0.01, right=False), row("compile, max-autotune", batch, None, right=False)]
    return BenchReport(model="swin", precision="fp16", gpu=None, states=(), rows=tuple(rows))


@pytest.fixture(scope="session")
def reports(deployed: Callable[[str, str], Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`report.html` of real bundles, by what is in them."""
    folder = tmp_path_factory.mktemp("reports")

    def copy(name: str, source: str = "swin", precision: str = "fp16") -> Bundle:
        return Bundle.open(shutil.copytree(deployed(source, precision), folder / f"{name}.trtship"))

    as_deployed, evaluated = copy("deployed"), copy("evaluated", "colours", "fp32")
    passed, failed, chosen, untimed = (copy(name) for name in ("passed", "failed", "chosen", "untimed"))
    found = choice()
    silent = tuple(msgspec.structs.replace(c, latency=()) for c in found.candidates)
    without = msgspec.structs.replace(found, timed_on=None, eager=(), candidates=silent)
    record_bench(passed.with_verdicts(passing(passed)), bench_report())
    write_report(failed.with_verdicts(failing(failed)))
    write_report(chosen.with_verdicts(passing(chosen)).with_files({CANDIDATES: to_json(found)}))
    write_report(untimed.with_files({CANDIDATES: to_json(without)}))
    bundles = (as_deployed, evaluated, passed, failed, chosen, untimed)
    return {bundle.folder.stem: bundle.folder / "report.html" for bundle in bundles}
