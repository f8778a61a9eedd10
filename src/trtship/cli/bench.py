"""`trtship bench`: a bundle and its peers, timed side by side."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from trtship.cli.options import add_inputs, positive

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from trtship.bench import BenchReport, Row
    from trtship.cli.console import Console
    from trtship.measure import Measure

HELP = "time a bundle and its peers on the same inputs and the same GPU, in one run"
MAX_HEAD_BYTES = 2**20
"""Of a file that is looked at before a plot replaces it."""
EXAMPLE = "trtship bench swin.trtship --against eager,compile,onnx-tensorrt --batches 1,32,128"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE")
    parser.add_argument(
        "--against",
        default="eager,compile,torch-tensorrt,onnx-tensorrt,onnxruntime",
        metavar="PEERS",
        help="a list of: eager, compile, torch-tensorrt, onnx-tensorrt, onnxruntime (default: all); or of "
        "single variants of a peer, such as compile:reduce-overhead",
    )
    parser.add_argument("--batches", default="1,32,128", metavar="N,N", help="batch sizes (default: 1,32,128)")
    parser.add_argument("--builds", default="1", metavar="N", help="plans built for each batch, since builds differ")
    parser.add_argument(
        "--source", metavar="SOURCE", help="where the model is now, if not where the bundle was made from"
    )
    parser.add_argument("--checkpoint", metavar="FILE", help="where its weights are now")
    parser.add_argument(
        "--peer-path",
        action="append",
        default=[],
        metavar="PEER=FOLDER",
        help="packages that this peer alone imports first, for one that needs other versions; may be repeated",
    )
    parser.add_argument(
        "--prepare-within",
        default="1800",
        metavar="SECONDS",
        help="how long compiling may take, for each of its three rounds: peers that time kernels meanwhile and must be "
        "alone, those that take turns, and the rest; what is not ready then is left out, and the table says so "
        "(default: 1800)",
    )
    parser.add_argument(
        "--together",
        action="store_true",
        help="prepare all batches before the first is timed: quicker, and takes the memory of all at once",
    )
    add_inputs(
        parser,
        what="inputs to time and compare on, as an .npz or .safetensors file, a folder of .npy files or of pictures; "
        "may be repeated (default: the bundle's reference rows)",
    )
    parser.add_argument("--plot", metavar="FILE", help="write throughput against batch as an SVG")
    parser.add_argument("--record", action="store_true", help="keep the result in the bundle, and in its report")


def run(arguments: argparse.Namespace, console: Console) -> int:
    from pathlib import Path

    from trtship.bench import bench
    from trtship.bench.original import options_of, original_of
    from trtship.bundle import Bundle
    from trtship.bundle.names import MANIFEST
    from trtship.files import check_writable
    from trtship.report import record_bench

    if arguments.plot:
        _check_plot(Path(arguments.plot))
    batches = [positive(text, "--batches") for text in arguments.batches.split(",")]
    within = positive(arguments.prepare_within, "--prepare-within")
    builds = positive(arguments.builds, "--builds")
    paths = peer_paths(arguments.peer_path)
    bundle = Bundle.open(arguments.bundle, progress=console.progress)
    if arguments.record:
        check_writable(bundle.folder / MANIFEST, do="leave --record away, or mend its permissions")
    options = options_of(bundle, source=arguments.source, checkpoint=arguments.checkpoint)
    original = original_of(bundle, options, progress=console.progress)
    report = bench(
        bundle,
        original,
        options,
        against=[name for name in arguments.against.split(",") if name],
        batches=list(dict.fromkeys(batches)),
        builds=builds,
        peer_paths=paths,
        within=within,
        together=arguments.together,
        inputs=arguments.inputs,
        progress=console.progress,
    )
    if arguments.record:
        record_bench(bundle, report)
    console.result(report)
    if arguments.plot:
        _plot(report, arguments.plot)
    if not console.json:
        show(report, console)
    return 0


def peer_paths(texts: Sequence[str]) -> dict[str, Path]:
    """`["torch-tensorrt=/opt/peer"]` as a dict. Raises SpecError."""
    from pathlib import Path

    from trtship.errors import SpecError

    found: dict[str, Path] = {}
    for text in texts:
        name, equals, folder = text.partition("=")
        if not (name and equals and folder) or name in found:
            why = "it was given twice for this peer" if name in found else "it takes PEER=FOLDER"
            do = "for example --peer-path torch-tensorrt=/opt/peer"
            raise SpecError(f"--peer-path {text!r} is no path of a peer", why=why, do=do)
        found[name] = Path(folder)
    return found


def _check_plot(target: Path) -> None:
    """Raises OutputError for a file that cannot be written, or is not a plot of an earlier run."""
    from trtship.errors import OutputError
    from trtship.files import open_regular, read_bounded, refuse_to_replace

    refuse_to_replace(target, force=True)
    if not target.exists():
        return
    with open_regular(target) as file:
        head = read_bounded(file, MAX_HEAD_BYTES)
    if not head.startswith(b"<svg") or not any(mark in head for mark in (b"Throughput of", b"nothing timed")):
        raise OutputError(
            f"{target} is not replaced", why="it is not a plot that trtship wrote", do="choose another path for --plot"
        )


def _plot(report: BenchReport, path: str) -> None:
    from pathlib import Path

    from trtship.bench.plot import throughput_svg
    from trtship.files import whole_file

    where = f", {report.gpu.name}" if report.gpu else ""
    with whole_file(Path(path)) as draft:
        draft.write_text(throughput_svg(report, title=f"{report.model}, {report.precision}{where}"))


def show(report: BenchReport, console: Console) -> None:
    """The table, and who was faster."""
    from trtship.cli.tables import table

    columns = ("batch", "variant", "GPU ms", "95 %", "images/s", "end to end ms", "against float64", "")
    console.print(table(columns, [_cells(row) for row in report.rows]))
    for batch in dict.fromkeys(row.batch for row in report.rows):
        if found := report.ratio(batch):
            console.print(
                f"batch {batch}: {found.ratio:.3f} times as fast as the best peer: {found.ours_ms:.3f} ms "
                f"({found.ours}) against {found.peer_ms:.3f} ms ({found.peer})"
            )
    console.print(f"{report.model}, {report.precision}" + (f", on {report.gpu.name}" if report.gpu else ""))


def _cells(row: Row) -> tuple[str, ...]:
    if row.gpu is None:
        return (str(row.batch), row.label, "", "", "", "", "", f"not timed: {row.reason}")
    notes = [
        *([] if row.right else [f"WRONG: off by {_size(row.error)}, over the bound"]),
        *([row.note] * bool(row.note)),
    ]
    return (
        str(row.batch),
        row.label,
        f"{row.gpu.median_ms:.3f}",
        f"{row.gpu.low_ms:.3f}-{row.gpu.high_ms:.3f}",
        f"{row.batch / row.gpu.median_ms * 1e3:.0f}",
        f"{row.end_to_end.median_ms:.2f}" if row.end_to_end else "",
        _size(row.exact_error) if row.exact_error else "",
        "; ".join([*notes, *([] if row.cuda_graph else ["no CUDA graph"])]),
    )


def _size(error: Measure | None) -> str:
    return "not finite" if error is None or error.rel_l2 is None else f"{error.rel_l2:.1e}"
