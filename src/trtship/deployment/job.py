"""`trtship.deploy`: run the stages, put the bundle together, hold it against its gates, and only then name it."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trtship.bundle.bundle import Bundle
from trtship.bundle.candidates import Choice, choice_of
from trtship.bundle.replacing import replaceable_bundle
from trtship.bundle.subjects import EXACT
from trtship.bundle.verify import check_bundle
from trtship.cache import Cache
from trtship.calibrate import DEFAULT_METHOD
from trtship.deployment.assemble import assemble
from trtship.deployment.failed import NOT_KEPT, FailedGatesError, FailedPlace
from trtship.deployment.finish import finish
from trtship.deployment.making import Made, make_common, make_plan
from trtship.deployment.options import DeployOptions, recipe_of
from trtship.deployment.place import check_place, compare_with_standing
from trtship.deployment.search import Found, search
from trtship.deployment.stages import StageResult, Stages
from trtship.deployment.stages.plan import verify
from trtship.deployment.way import Way
from trtship.engine import check_can_build
from trtship.family import choose_family
from trtship.files import named_path, whole_folder
from trtship.input_files import SampleSource, source_of
from trtship.input_values import TriedInput
from trtship.passes.registry import ALL
from trtship.progress import SILENT, Progress
from trtship.sources import LoadedModel, SourceOptions, resolve
from trtship.spec import Record, TensorSpec, as_plain
from trtship.verify import Verdict


class DeployResult(Record, frozen=True):
    """`bundle` is its path; `up_to_date` says that it was there already, made from the same recipe, and nothing was
    done. `changed` tells what differs from the bundle that stood there before; `stages` what ran; `choice` what
    `precision="auto"` tried; `inputs` the values that the checks ran on."""

    bundle: str
    up_to_date: bool
    changed: tuple[str, ...]
    stages: tuple[StageResult, ...]
    verdicts: tuple[Verdict, ...]
    seconds: float
    choice: Choice | None = None
    inputs: tuple[TriedInput, ...] = ()


def deploy(
    source: str,
    output: str | Path,
    *,
    checkpoint: str | Path | None = None,
    pretrained: bool = False,
    random_weights: bool = False,
    seed: int = 0,
    model_args: Sequence[tuple[str, str]] = (),
    task: str | None = None,
    inputs: Any = None,
    input_specs: Sequence[str] = (),
    input_ranges: Mapping[str, tuple[float, float]] | Sequence[str] = (),
    precision: str = "fp16",
    batch: str | None = None,
    sizes: Sequence[str] = (),
    profiles: str | None = None,
    io_dtype: str = "float32",
    opset: int | None = None,
    exporter: str | None = None,
    passes: str = ALL,
    family: str | None = None,
    targets: Sequence[str] = (),
    eval_dir: str | Path | None = None,
    labels: str | Path | None = None,
    max_drop: float = 0.5,
    max_rel_l2: float | None = None,
    min_cosine: float | None = None,
    calib_dir: str | Path | None = None,
    calib_method: str = DEFAULT_METHOD,
    quantize: str = "fused",
    candidates: str | None = None,
    time_budget: str | None = None,
    force: bool = False,
    keep_failed: str | Path | None = None,
    progress: Progress = SILENT,
) -> DeployResult:
    """Make a verified bundle at `output` from `source`; the options are those of `trtship deploy --help`.

    `batch` is `"MIN:OPT:MAX"` or one size; `sizes` are `"L=MIN:OPT:MAX"` for other dynamic sizes; `profiles` is
    `"none"` or the batch sizes that get kernels of their own, `"1,8,32"` (min, opt and max unless given); `input_specs`
    are `"NAME=Bx3x80x80[:int64]"`, for inputs that the source does not tell; `passes` are `"all"`, `"none"` or names
    with commas between them, of the rewrites that make the graph faster; `task` says what a transformers model is for,
    such as `"depth-estimation"`, where its config.json does not name its class. `precision="auto"` tries `candidates`
    (all, or names with commas between them) within `time_budget` (`"20m"`), and ships the fastest that passes every
    gate.

    `inputs` are real inputs, which become reference, probe and calibration material: paths of `.npz` or `.safetensors`
    files and of folders, a dict of arrays [rows, ...] by input name, an array for a model of one input, or a list or an
    iterator of such dicts or arrays. (Texts such as `"ids=BxL:int64"` mean `input_specs`.) `input_ranges` are the least
    and the largest value of an input, `{"t": (0, 999)}` or `["t=0:999"]`, for those who have no real inputs.

    For fp8 and int8, `calib_dir` has pictures (by default those of `eval_dir`), `calib_method` is `"percentile"`,
    `"entropy"` or `"min-max"`, and `quantize` says which products: `"fused"` those that cost no kernel, `"all"`, or
    `"weights"`, of all of them the weights alone.

    A bundle that stands at `output` and was made from the same recipe is left as it is; any other needs `force`. One
    that fails its gates goes to `keep_failed`, with its verdicts, where that is given: for `trtship debug`. A bundle
    that stands there needs `force`, too.

    Raises UserError (and subclasses) for what cannot be done as asked, GateError when the result is not the model,
    MachineError when this machine lacks something. In each case nothing is left at `output` that was not there.
    """
    specs, given = _specs_or_inputs(inputs)
    paths = {
        "checkpoint": checkpoint,
        "eval_dir": eval_dir,
        "labels": labels,
        "calib_dir": calib_dir,
        "keep_failed": keep_failed,
    }
    for name, path in paths.items():
        if path is not None:
            named_path(path, name)
    options = DeployOptions.parse(
        SourceOptions(
            source=source,
            checkpoint=None if checkpoint is None else str(checkpoint),
            pretrained=pretrained,
            random_weights=random_weights,
            seed=seed,
            model_args=tuple(model_args),
            inputs=tuple(TensorSpec.parse(text) for text in (*input_specs, *specs)),
            task=task,
        ),
        precision=precision,
        batch=batch,
        sizes=sizes,
        profiles=profiles,
        io_dtype=io_dtype,
        opset=opset,
        exporter=exporter,
        passes=passes,
        family=family,
        targets=targets,
        eval_dir=eval_dir,
        labels=labels,
        max_drop=max_drop,
        max_rel_l2=max_rel_l2,
        min_cosine=min_cosine,
        calib_dir=calib_dir,
        calib_method=calib_method,
        quantize=quantize,
        candidates=candidates,
        time_budget=time_budget,
        input_ranges=_range_texts(input_ranges),
    )
    return run_deploy(options, output, given=given, force=force, keep_failed=keep_failed, progress=progress)


def _specs_or_inputs(inputs: Any) -> tuple[tuple[str, ...], SampleSource | None]:
    """Texts such as `"ids=BxL:int64"` as specs, and all else as real inputs."""
    texts = tuple(inputs) if isinstance(inputs, list | tuple) else ()
    if texts and all(isinstance(text, str) and "=" in text and not Path(text).exists() for text in texts):
        return texts, None
    return (), source_of(inputs)


def _range_texts(given: Mapping[str, tuple[float, float]] | Sequence[str]) -> tuple[str, ...]:
    if isinstance(given, Mapping):
        return tuple(f"{name}={low!r}:{high!r}" for name, (low, high) in given.items())
    return tuple(given)


def run_deploy(
    options: DeployOptions,
    output: str | Path,
    *,
    given: SampleSource | None = None,
    force: bool = False,
    keep_failed: str | Path | None = None,
    progress: Progress = SILENT,
) -> DeployResult:
    """`deploy`, its options already parsed; `given` are real inputs, where the options' files do not have them."""
    output = named_path(output, "output")
    begun = time.monotonic()
    given = options.given if given is None else given
    options.check(given)
    kept = None if keep_failed is None else FailedPlace.checked(keep_failed, output, options, force=force)
    source = resolve(options.source.source)
    source.check(options.source)
    check_place(output)
    family, why = choose_family(options.family, tf32=options.precision is None or options.precision.tf32)
    check_can_build(family, options.targets)
    cache = Cache()
    subject = str(output.absolute())
    stages = Stages(source, options, cache=cache, subject=subject, family=family, progress=progress, given=given)
    model = source.fingerprint(options.source)
    if model is None:
        loaded = stages.model
        assert isinstance(loaded, LoadedModel)
        model = loaded.fingerprint()
    stages.recipe = recipe_of(options, model=model, family=str(family), given=given)
    with cache.turn(
        f"deploy {output.absolute()}", waiting=lambda: progress.note(f"waiting for another deploy to {output}")
    ):
        choice: Choice | None = None
        changed, standing = compare_with_standing(output, stages.recipe, force=force, progress=progress)
        if standing is not None:
            progress.note(f"{output} is up to date: nothing has changed, nothing was done")
            verdicts, choice = standing.manifest.verdicts, choice_of(standing)
            tried = standing.manifest.tried
        else:
            progress.note(f"TensorRT: {why}")
            verdicts, choice, tried = _make(stages, output, begun, kept)
    return DeployResult(
        bundle=str(output),
        up_to_date=standing is not None,
        changed=changed,
        stages=tuple(stages.results),
        verdicts=verdicts,
        seconds=round(time.monotonic() - begun, 2),
        choice=choice,
        inputs=tried,
    )


def _make(
    stages: Stages, output: Path, begun: float, kept: FailedPlace | None
) -> tuple[tuple[Verdict, ...], Choice | None, tuple[TriedInput, ...]]:
    options = stages.options
    common = make_common(stages)
    found: Found | None = None
    if options.precision is None:
        until = begun + options.time_budget if options.time_budget else math.inf
        found = search(stages, common, begun=begun, until=until)
        made = found.made
    else:
        made = make_plan(stages, common, Way(precision=options.precision))
    check_place(output)  # again: minutes have passed
    with whole_folder(output, replace=replaceable_bundle) as draft:
        manifest = assemble(stages, common, made, draft, name=output.stem, choice=found.choice if found else None)
        try:
            verdicts = _hold_gates(found.candidate.verdicts) if found else checked(stages, made, Bundle.open(draft))
        except FailedGatesError as failure:
            became = NOT_KEPT if kept is None else kept.keep(stages, draft, manifest, failure.verdicts)
            raise failure.told(became) from failure
        finish(stages, Bundle(draft, manifest).with_verdicts(verdicts))
    return verdicts, found.choice if found else None, manifest.tried


def checked(stages: Stages, made: Made, bundle: Bundle) -> tuple[Verdict, ...]:
    """The verdicts on a bundle that is about to be shipped. Raises GateError."""
    m = bundle.manifest
    eval_dir = None if stages.options.eval_dir is None else Path(stages.options.eval_dir)
    key = {
        "files": m.files,
        "batch": {letter: str(r) for letter, r in m.ranges.items()},
        "bounds": as_plain(made.bounds),
        "gates": as_plain(m.gates),
        "model": stages.recipe["model"],
    }
    return verify(
        stages,
        key,
        lambda: _hold_gates(
            check_bundle(bundle, eval_dir=eval_dir, family=stages.family.name, progress=stages.progress)
        ),
    )


def _advice(failed: Sequence[Verdict]) -> str:
    """What may help; no other precision does where fp32 itself does not meet a gate of the user's."""
    asked = {v.bound.source for v in failed if v.bound is not None and v.bound.source.startswith("--")}
    if asked and any(v.subject == EXACT for v in failed):
        return f"loosen {', '.join(sorted(asked))}: the graph in fp32 does not meet it either"
    return "try --precision bf16 or fp32, or auto; a bound on top-1 is --max-drop's"


def _hold_gates(verdicts: tuple[Verdict, ...]) -> tuple[Verdict, ...]:
    """The verdicts, when none failed; else GateError, within the stage, so that a failure is never remembered: it may
    have been this process's (memory, TF32), and the next one deserves its own."""
    failed = [v for v in verdicts if v.state == "failed"]
    if failed:
        raise FailedGatesError(verdicts, do=_advice(failed))
    return verdicts
