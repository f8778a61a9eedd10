"""Build a plan in a process of its own (`trtship.engine.build_process`): TensorRT is native code, and can crash.

(TensorRT for RTX 1.6.1 does so, ended by SIGSEGV, on transformers' Swin in fp16 at batch 1 where it is small.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from trtship.engine.build import BuildReport, Plan
from trtship.engine.build_messages import LAYERS, LOG, PLAN, REPORT, Job, Refused, Step, Written
from trtship.engine.layers import PlanLayers
from trtship.errors import BuildCrashed, Cancelled, error_named
from trtship.family import Family
from trtship.files import temporary_folder
from trtship.processes import end, how_it_ended, last_words, start
from trtship.progress import SILENT, Progress
from trtship.spec import Precision, ShapeRange, TensorSpec, from_json


def plan_apart(
    graph: Path,
    *,
    family: Family,
    inputs: Sequence[TensorSpec],
    ranges: Mapping[str, ShapeRange],
    single: Sequence[int] = (),
    precision: Precision = Precision.FP32,
    targets: Sequence[str] = (),
    progress: Progress = SILENT,
) -> Plan:
    """As `plan_from_onnx`, in a process of its own. Ctrl-C, and an exception of `progress`, end that process.

    Raises what `plan_from_onnx` raises, and BuildCrashed.
    """
    with temporary_folder() as folder:
        job = Job(
            graph=str(graph.absolute()),
            family=family.name,
            inputs=tuple(inputs),
            ranges=dict(ranges),
            single=tuple(single),
            precision=precision,
            targets=tuple(targets),
            folder=str(folder),
        )
        _run(job, folder, family, progress)
        return Plan(
            data=(folder / PLAN).read_bytes(),
            log=(folder / LOG).read_text(),
            report=from_json((folder / REPORT).read_bytes(), BuildReport, what="the build's report"),
            layers=from_json((folder / LAYERS).read_bytes(), PlanLayers, what="the plan's layers"),
        )


def _run(job: Job, folder: Path, family: Family, progress: Progress) -> None:
    log = folder / "stderr.txt"
    process = start("trtship.engine.build_process", log=log)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(msgspec.json.encode(job) + b"\n")  # it stays open: where it ends, so does the process
        process.stdin.flush()
        for line in process.stdout:
            message = msgspec.json.decode(line, type=Step | Written | Refused)
            if isinstance(message, Written):
                return
            if isinstance(message, Refused):
                raise error_named(message.error)(message.what, why=message.why, do=message.do)
            progress.step(message.done, message.text)
        code = process.wait()
    except BrokenPipeError:
        code = process.wait()
    except KeyboardInterrupt:
        raise Cancelled("the build was cancelled", do="nothing was left behind; run it again when you like") from None
    finally:
        end(process)
        process.stdin.close()
        process.stdout.close()
    raise BuildCrashed(
        f"{family} crashed while it built the plan",
        why=f"its process {how_it_ended(code)}; {last_words(log) or 'it said nothing'}",
        do="try another --precision, --batch, --profiles or --passes; the graph is worth a bug report to NVIDIA",
    )


def sturdy_plan(
    build: Callable[[tuple[int, ...]], Plan], *, single: Sequence[int], asked: bool, progress: Progress = SILENT
) -> Plan:
    """`build(single)`; where TensorRT crashes over a profile that nobody `asked` for, without that profile.

    Raises what `build` raises.
    """
    try:
        return build(tuple(single))
    except BuildCrashed as crash:
        if asked or not single:
            raise
        found = build(())  # raises where it is not the profiles
        good = tuple(size for size in single if _builds(build, size))
        bad = ", ".join(str(size) for size in single if size not in good)
        left_out = f"no kernels of its own for batch {bad}: {crash.what} with them ({crash.why})"
        progress.note(left_out)
        found = build(good) if good else found
        return msgspec.structs.replace(found, report=msgspec.structs.replace(found.report, left_out=left_out))


def _builds(build: Callable[[tuple[int, ...]], Plan], size: int) -> bool:
    try:
        build((size,))
    except BuildCrashed:
        return False
    return True
