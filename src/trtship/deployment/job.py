"""`trtship.deploy`: run the stages, put the bundle together, hold it against its gates, and only then name it."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from trtship.bundle.bundle import Bundle, hash_files, write_manifest
from trtship.bundle.manifest import SCHEMA, Machine, Manifest, SourceInfo
from trtship.bundle.verify import check_bundle
from trtship.cache import Cache, Entry, describe_changes
from trtship.deployment.options import DeployOptions, recipe_of, versions
from trtship.deployment.stages import GRAPH, PLAN, REPORT, ModelReport, StageResult, Stages
from trtship.engine import LAYERS_FILE, check_can_build
from trtship.errors import BundleError, GateError, OutputError
from trtship.family import choose_family
from trtship.files import whole_folder
from trtship.gpu import list_gpus
from trtship.passes.registry import ALL
from trtship.progress import SILENT, Progress
from trtship.sources import LoadedModel, SourceOptions, resolve
from trtship.spec import Record, ShapeRange, TensorSpec, as_plain, batch_letter
from trtship.verify import Bound, Verdict


class DeployResult(Record, frozen=True):
    """`bundle` is its path; `up_to_date` says that it was there already, made from the same recipe, and nothing was
    done. `changed` tells what differs from the bundle that stood there before; `stages` what ran."""

    bundle: str
    up_to_date: bool
    changed: tuple[str, ...]
    stages: tuple[StageResult, ...]
    verdicts: tuple[Verdict, ...]
    seconds: float


def deploy(
    source: str,
    output: str | Path,
    *,
    checkpoint: str | Path | None = None,
    pretrained: bool = False,
    random_weights: bool = False,
    seed: int = 0,
    model_args: Sequence[tuple[str, str]] = (),
    inputs: Sequence[str] = (),
    precision: str = "fp16",
    batch: str | None = None,
    sizes: Sequence[str] = (),
    io_dtype: str = "float32",
    opset: int | None = None,
    exporter: str | None = None,
    passes: str = ALL,
    family: str | None = None,
    targets: Sequence[str] = (),
    eval_dir: str | Path | None = None,
    labels: str | Path | None = None,
    max_drop: float = 0.5,
    force: bool = False,
    progress: Progress = SILENT,
) -> DeployResult:
    """Make a verified bundle at `output` from `source`; the options are those of `trtship deploy --help`.

    `batch` is `"MIN:OPT:MAX"` or one size; `sizes` are `"L=MIN:OPT:MAX"` for other dynamic sizes; `inputs` are
    `"NAME=Bx3x80x80[:int64]"`; `passes` are `"all"`, `"none"` or names with commas between them, of the rewrites that
    make the graph faster. A bundle that stands at `output` and was made from the same recipe is left as it is;
    any other needs `force`.

    Raises UserError (and subclasses) for what cannot be done as asked, GateError when the result is not the model,
    MachineError when this machine lacks something. In each case nothing is left at `output` that was not there.
    """
    options = DeployOptions.parse(
        SourceOptions(
            source=source,
            checkpoint=None if checkpoint is None else str(checkpoint),
            pretrained=pretrained,
            random_weights=random_weights,
            seed=seed,
            model_args=tuple(model_args),
            inputs=tuple(TensorSpec.parse(text) for text in inputs),
        ),
        precision=precision,
        batch=batch,
        sizes=sizes,
        io_dtype=io_dtype,
        opset=opset,
        exporter=exporter,
        passes=passes,
        family=family,
        targets=targets,
        eval_dir=eval_dir,
        labels=labels,
        max_drop=max_drop,
    )
    return run_deploy(options, output, force=force, progress=progress)


def run_deploy(
    options: DeployOptions, output: str | Path, *, force: bool = False, progress: Progress = SILENT
) -> DeployResult:
    """`deploy`, its options already parsed."""
    output = Path(output)
    begun = time.monotonic()
    options.check()
    source = resolve(options.source.source)
    source.check(options.source)
    check_place(output)
    family, why = choose_family(options.family, tf32=options.precision.tf32)
    check_can_build(family, options.targets)
    cache = Cache()
    stages = Stages(source, options, cache=cache, subject=str(output.absolute()), family=family, progress=progress)
    model = source.fingerprint(options.source)
    if model is None:
        loaded = stages.model
        assert isinstance(loaded, LoadedModel)
        model = loaded.fingerprint()
    stages.recipe = recipe_of(options, model=model, family=str(family))
    with cache.turn(
        f"deploy {output.absolute()}", waiting=lambda: progress.note(f"waiting for another deploy to {output}")
    ):
        changed, standing = _compare_with_standing(output, stages.recipe, force=force, progress=progress)
        if standing is not None:
            progress.note(f"{output} is up to date: nothing has changed, nothing was done")
            verdicts = standing.manifest.verdicts
        else:
            progress.note(f"TensorRT: {why}")
            verdicts = _make(stages, output, progress)
    return DeployResult(
        bundle=str(output),
        up_to_date=standing is not None,
        changed=changed,
        stages=tuple(stages.results),
        verdicts=verdicts,
        seconds=round(time.monotonic() - begun, 2),
    )


def check_place(output: Path) -> None:
    """Raises OutputError early where a bundle could not be written, or would replace something that is none."""
    parent = output.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        why = "it is a file" if not parent.is_dir() else "no write permission"
        raise OutputError(f"cannot write {output}", why=f"{parent}: {why}", do="choose a folder that you may write to")
    if output.is_symlink() or (output.exists() and not _replaceable(output)):
        raise OutputError(
            f"{output} exists and is no bundle",
            why="only a bundle may be replaced, with --force",
            do="choose another -o, or remove it yourself",
        )


def _replaceable(output: Path) -> bool:
    if not output.is_dir():
        return False
    is_bundle = (output / "manifest.json").is_file() and (output / "evidence").is_dir()
    return is_bundle or not any(output.iterdir())


def _compare_with_standing(
    output: Path, recipe: dict[str, Any], *, force: bool, progress: Progress
) -> tuple[tuple[str, ...], Bundle | None]:
    """What changed since the bundle at `output` was made, and that bundle when nothing did."""
    if not output.exists() or not any(output.iterdir()):
        return ("first run",), None
    try:
        standing = Bundle.open(output, progress=progress)
    except BundleError as error:
        if not force:
            raise OutputError(
                f"{output} exists", why=error.what, do="--force replaces it, or choose another -o"
            ) from error
        return (f"the bundle that stood there could not be used: {error.what}",), None
    failed = [
        f"{v.subject}, {v.gate} failed since it was made" for v in standing.manifest.verdicts if v.state == "failed"
    ]
    changed = (*describe_changes(standing.manifest.recipe, recipe), *failed)
    if not changed:
        return (), standing
    if not force:
        raise OutputError(
            f"{output} exists, and is not what was asked for",
            why="; ".join(changed[:5]) + (f"; and {len(changed) - 5} more" if len(changed) > 5 else ""),
            do="--force replaces it, or choose another -o",
        )
    return changed, None


def _make(stages: Stages, output: Path, progress: Progress) -> tuple[Verdict, ...]:
    options = stages.options
    graph, model = stages.export()
    ranges = stages.ranges(model.inputs)
    labels = stages.labels(model)
    original = stages.original(graph, model, ranges)
    simple = stages.simplify(graph, model)
    fast = stages.optimize(simple, model)
    typed, bounds = stages.precision(fast)
    plan_inputs, plan_outputs = (
        tuple(msgspec.structs.replace(s, dtype=options.io_dtype) if s.dtype == "float32" else s for s in specs)
        for specs in (model.inputs, model.export.outputs)
    )
    plan = stages.build(typed, plan_inputs, ranges)
    check_place(output)  # again: minutes have passed
    with whole_folder(output, replace=output.exists()) as draft:
        names = _lay_out(
            draft, options, graph=graph, simple=simple, fast=fast, typed=typed, plan=plan, original=original
        )
        if labels is not None:
            lines = (" ".join(label.splitlines()) for label in labels)
            (draft / "labels.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        manifest = _manifest(
            stages,
            model,
            name=output.stem,
            names=names,
            plan_specs=(plan_inputs, plan_outputs),
            ranges=ranges,
            bounds=bounds,
            labels=labels,
            files=hash_files(draft),
        )
        write_manifest(draft, manifest)
        bundle = Bundle.open(draft)
        eval_dir = None if options.eval_dir is None else Path(options.eval_dir)
        verdicts = stages.verify(
            {
                "files": manifest.files,
                "batch": {letter: str(r) for letter, r in ranges.items()},
                "bounds": as_plain(bounds),
                "model": stages.recipe["model"],
            },
            lambda: _hold_gates(check_bundle(bundle, eval_dir=eval_dir, family=stages.family.name, progress=progress)),
        )
        write_manifest(draft, msgspec.structs.replace(manifest, verdicts=verdicts))
    return verdicts


def _hold_gates(verdicts: tuple[Verdict, ...]) -> tuple[Verdict, ...]:
    """The verdicts, when none failed; else GateError, within the stage, so that a failure is never remembered: it may
    have been this process's (memory, TF32), and the next one deserves its own."""
    failed = [v for v in verdicts if v.state == "failed"]
    if failed:
        raise GateError(
            f"no bundle: {len(failed)} of {len(verdicts)} gates failed",
            why="; ".join(f"{v.subject}, {v.gate}: {v.reason}" for v in failed),
            do="try --precision bf16 or fp32; a bound on top-1 is --max-drop's",
            evidence=as_plain(verdicts),
        )
    return verdicts


class _Names(msgspec.Struct, frozen=True):
    graph: str
    precision_graph: str


def _lay_out(
    draft: Path,
    options: DeployOptions,
    *,
    graph: Entry,
    simple: Entry,
    fast: Entry,
    typed: Entry,
    plan: Entry,
    original: Entry,
) -> _Names:
    """Copy what the stages made to its place in the bundle."""
    same = options.precision.graph_dtype == "float32"
    names = _Names(GRAPH, GRAPH if same else f"{options.precision.value}/{GRAPH}")
    for entry, target in ((fast, draft), (typed, draft / options.precision.value)):
        if entry is typed and same:
            continue
        target.mkdir(exist_ok=True)
        for file in entry.files:
            if file.startswith(GRAPH):
                shutil.copyfile(entry.folder / file, target / file)
    shutil.copyfile(plan.folder / PLAN, draft / PLAN)
    shutil.copytree(original.folder / "reference", draft / "reference")
    evidence = draft / "evidence"
    evidence.mkdir()
    reports = {"export": graph, "simplify": simple, "optimize": fast, "precision": typed, "build": plan}
    if fast is simple:
        del reports["optimize"]
    for name, entry in reports.items():
        shutil.copyfile(entry.folder / REPORT, evidence / f"{name}.json")
    for file in ("build.log", LAYERS_FILE):
        shutil.copyfile(plan.folder / file, evidence / file)
    if "originals.json" in original.files:
        shutil.copyfile(original.folder / "originals.json", evidence / "originals.json")
    return names


def _manifest(
    stages: Stages,
    model: ModelReport,
    *,
    name: str,
    names: _Names,
    plan_specs: tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]],
    ranges: dict[str, ShapeRange],
    bounds: dict[str, Bound],
    labels: tuple[str, ...] | None,
    files: dict[str, str],
) -> Manifest:
    options = stages.options
    return Manifest(
        schema=SCHEMA,
        seal="",
        name=name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions={**versions(), stages.family.name: stages.family.version},
        machine=Machine(
            platform=platform.platform(),
            python=sys.version.split()[0],
            cpus=os.cpu_count() or 1,
            gpus=list_gpus(),
        ),
        source=SourceInfo(
            source=options.source.source,
            options=options.source,
            weights=_weights(options.source),
            notes=model.notes,
        ),
        precision=options.precision,
        inputs=model.inputs,
        outputs=model.export.outputs,
        plan_inputs=plan_specs[0],
        plan_outputs=plan_specs[1],
        ranges=ranges,
        preprocess=model.preprocess,
        labels=None if labels is None else "labels.txt",
        graph=names.graph,
        precision_graph=names.precision_graph,
        plan=PLAN,
        family=stages.family.name,
        family_version=stages.family.version,
        reference_sizes={letter: r.opt for letter, r in ranges.items() if letter != batch_letter(model.inputs)},
        bounds=bounds,
        max_drop=options.max_drop,
        verdicts=(),
        recipe=stages.recipe,
        files=files,
    )


def _weights(options: SourceOptions) -> str:
    if options.checkpoint is not None:
        return f"checkpoint {Path(options.checkpoint).name}"
    if options.pretrained:
        return "pretrained"
    return f"random, seed {options.seed}" if options.random_weights else "the source's own"
