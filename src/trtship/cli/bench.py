"""`trtship bench`: a bundle and its peers, timed side by side."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from trtship.cli.options import positive

if TYPE_CHECKING:
    from trtship.bench import BenchReport, Row
    from trtship.cli.console import Console

HELP = "time a bundle and its peers on the same inputs and the same GPU, in one run"
EXAMPLE = "trtship bench swin.trtship --against eager,compile,onnx-tensorrt --batches 1,32,128"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE")
    parser.add_argument(
        "--against",
        default="eager,compile,torch-tensorrt,onnx-tensorrt,onnxruntime",
        metavar="PEERS",
        help="a list of: eager, compile, torch-tensorrt, onnx-tensorrt, onnxruntime (default: all)",
    )
    parser.add_argument("--batches", default="1,32,128", metavar="N,N", help="batch sizes (default: 1,32,128)")
    parser.add_argument("--builds", default="1", metavar="N", help="plans built for each batch, since builds differ")
    parser.add_argument(
        "--source", metavar="SOURCE", help="where the model is now, if not where the bundle was made from"
    )
    parser.add_argument("--checkpoint", metavar="FILE", help="where its weights are now")
    parser.add_argument("--plot", metavar="FILE", help="write throughput against batch as an SVG")


def run(arguments: argparse.Namespace, console: Console) -> int:
    from pathlib import Path

    from trtship.bench import bench
    from trtship.bench.original import original_of
    from trtship.bundle import Bundle

    batches = [positive(text, "--batches") for text in arguments.batches.split(",")]
    bundle = Bundle.open(arguments.bundle, progress=console.progress)
    original = original_of(bundle, source=arguments.source, checkpoint=arguments.checkpoint, progress=console.progress)
    report = bench(
        bundle,
        original,
        against=[name for name in arguments.against.split(",") if name],
        batches=batches,
        builds=positive(arguments.builds, "--builds"),
        progress=console.progress,
    )
    console.result(report)
    if arguments.plot:
        from trtship.bench.plot import throughput_svg
        from trtship.files import whole_file

        with whole_file(Path(arguments.plot)) as draft:
            draft.write_text(
                throughput_svg(report.rows, title=f"{report.model}, {report.precision}, {report.gpu.name}")
            )
    if not console.json:
        _show(report, batches, console)
    return 0


def _show(report: BenchReport, batches: list[int], console: Console) -> None:
    from trtship.cli.tables import table

    columns = ("batch", "variant", "GPU ms", "95 %", "images/s", "end to end ms", "relative L2", "")
    console.print(table(columns, [_cells(row) for row in report.rows]))
    for batch in batches:
        if found := report.ratio(batch):
            console.print(f"batch {batch}: {found[0]:.3f} times as fast as the best peer ({found[1]})")
    console.print(f"{report.model}, {report.precision}, on {report.gpu.name}")


def _cells(row: Row) -> tuple[str, ...]:
    if row.gpu is None:
        return (str(row.batch), row.name, "", "", "", "", "", f"not timed: {row.reason}")
    error = "not finite" if row.error is None or row.error.rel_l2 is None else f"{row.error.rel_l2:.1e}"
    notes = [*([] if row.right else ["WRONG: over the bound"]), *([row.note] if row.note else [])]
    return (
        str(row.batch),
        row.name,
        f"{row.gpu.median_ms:.3f}",
        f"{row.gpu.low_ms:.3f}-{row.gpu.high_ms:.3f}",
        f"{row.batch / row.gpu.median_ms * 1e3:.0f}",
        f"{row.end_to_end.median_ms:.2f}" if row.end_to_end else "",
        error,
        "; ".join(notes),
    )
