"""An ONNX file that somebody has -> a plan file, in the precision asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from trtship.engine.apart import plan_apart, sturdy_plan
from trtship.engine.build import BuildReport, check_can_build
from trtship.engine.profiles import usual_profiles
from trtship.errors import SpecError
from trtship.family import choose_family
from trtship.files import refuse_to_replace, temporary_folder, whole_file
from trtship.passes import to_precision
from trtship.progress import SILENT, Progress
from trtship.sources import LoadedGraph, SourceOptions, resolve
from trtship.spec import DEFAULT_BATCH, Precision, ShapeRange, TensorSpec


def plan_file_from_onnx(
    graph: Path,
    target: Path,
    *,
    precision: Precision,
    batch: ShapeRange | None = None,
    sizes: Mapping[str, ShapeRange] | None = None,
    profiles: Sequence[int] | None = None,
    io_dtype: str = "float32",
    family: str | None = None,
    targets: Sequence[str] = (),
    log: Path | None = None,
    force: bool = False,
    progress: Progress = SILENT,
) -> BuildReport:
    """Write the plan to `target` and TensorRT's log to `log` (default: `target` + `.log`).

    `profiles` are the batch sizes that get kernels of their own, None for the usual ones: the range's min, opt and max.
    The graph is fp32, as `trtship export` writes it; its precision is set first. Raises UserError, BuildError.
    """
    log = log or target.with_name(target.name + ".log")
    for path in (target, log):
        refuse_to_replace(path, force=force)
    if log.absolute() == target.absolute():
        raise SpecError(f"--log {log} is the plan's own path", why="each needs its own file", do="choose another --log")
    chosen, why = choose_family(family, tf32=precision.tf32)
    check_can_build(chosen, targets)
    options = SourceOptions(source=str(graph))
    if graph.suffix != ".onnx":
        raise SpecError(f"{graph} is no ONNX file", why="its name does not end in .onnx", do="name an .onnx file")
    source = resolve(options.source)
    source.check(options)
    loaded = source.load(options, progress)
    assert isinstance(loaded, LoadedGraph)
    progress.note(f"TensorRT: {why}")
    letters = _letters_of(loaded.inputs)
    ranges = {name: r for name, r in {"B": batch or DEFAULT_BATCH, **(sizes or {})}.items() if name in letters}
    unknown = sorted({*(sizes or {}), *(["B"] if batch else [])} - letters)
    if unknown:
        raise SpecError(
            f"the graph has no dynamic size {unknown[0]}",
            why=f"its inputs are {', '.join(map(str, loaded.inputs))}",
            do="leave its --batch or --size away",
        )
    single = usual_profiles(loaded.inputs, ranges) if profiles is None else profiles
    with temporary_folder() as folder:
        typed = folder / graph.name  # the name that TensorRT's complaints should have
        to_precision(graph, typed, precision, io_dtype=io_dtype)
        inputs = tuple(msgspec.structs.replace(s, dtype=io_dtype) if s.dtype == "float32" else s for s in loaded.inputs)
        with progress.stage("build the plan", f"with {chosen}"):
            plan = sturdy_plan(
                lambda sizes: plan_apart(
                    typed,
                    family=chosen,
                    inputs=inputs,
                    ranges=ranges,
                    single=sizes,
                    precision=precision,
                    targets=targets,
                    progress=progress,
                ),
                single=single,
                asked=profiles is not None,
                progress=progress,
            )
    with whole_file(target) as plan_draft, whole_file(log) as log_draft:
        log_draft.write_text(plan.log)
        plan_draft.write_bytes(plan.data)
    return plan.report


def _letters_of(inputs: Sequence[TensorSpec]) -> set[str]:
    return {letter for spec in inputs for letter in spec.letters}
