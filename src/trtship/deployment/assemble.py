"""The bundle's folder, put together from what the stages made."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from trtship.bundle.bundle import hash_files, write_manifest
from trtship.bundle.candidates import CANDIDATES, Choice
from trtship.bundle.manifest import SCHEMA, Machine, Manifest, SourceInfo
from trtship.deployment.making import Common, Made
from trtship.deployment.options import DeployOptions, versions
from trtship.deployment.stages import GRAPH, PLAN, REPORT, Stages
from trtship.deployment.stages.graphs import ModelReport
from trtship.engine import LAYERS_FILE
from trtship.files import check_room
from trtship.gpu import list_gpus
from trtship.input_ranges import tried_inputs
from trtship.input_values import TriedInput
from trtship.sources import SourceOptions
from trtship.spec import batch_letter, to_json
from trtship.verify.gates import Gates


def assemble(
    stages: Stages, common: Common, made: Made, draft: Path, *, name: str, choice: Choice | None = None
) -> Manifest:
    """Fill the empty folder `draft` with a bundle that has no verdicts yet; returns its manifest. `choice` is how its
    precision was found."""
    check_room(draft, sum(file.stat().st_size for file in _large_files(common, made)))
    names = _lay_out(draft, common, made)
    if choice is not None:
        (draft / CANDIDATES).write_bytes(to_json(choice))
    if common.labels is not None:
        lines = (" ".join(label.splitlines()) for label in common.labels)
        (draft / "labels.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    manifest = _manifest(stages, common, made, name=name, names=names, folder=draft)
    write_manifest(draft, manifest)
    return manifest


def _large_files(common: Common, made: Made) -> list[Path]:
    """The graphs, the plan and the reference: nearly all that a bundle takes."""
    same = made.way.precision.graph_dtype == "float32"
    entries = (common.fast,) if same else (common.fast, made.typed)
    graphs = [entry.folder / file for entry in entries for file in entry.files if file.startswith(GRAPH)]
    reference = [file for file in (common.original.folder / "reference").rglob("*") if file.is_file()]
    return [*graphs, made.plan.folder / PLAN, *reference]


class _Names(msgspec.Struct, frozen=True):
    graph: str
    precision_graph: str


def _lay_out(draft: Path, common: Common, made: Made) -> _Names:
    """Copy what the stages made to its place in the bundle."""
    precision = made.way.precision
    same = precision.graph_dtype == "float32"
    names = _Names(GRAPH, GRAPH if same else f"{precision.value}/{GRAPH}")
    for entry, target in ((common.fast, draft), (made.typed, draft / precision.value)):
        if entry is made.typed and same:
            continue
        target.mkdir(exist_ok=True)
        for file in entry.files:
            if file.startswith(GRAPH):
                shutil.copyfile(entry.folder / file, target / file)
    shutil.copyfile(made.plan.folder / PLAN, draft / PLAN)
    shutil.copytree(common.original.folder / "reference", draft / "reference")
    evidence = draft / "evidence"
    evidence.mkdir()
    reports = {
        "export": common.graph,
        "simplify": common.simple,
        "optimize": common.fast,
        "precision": made.typed,
        "build": made.plan,
    }
    reports |= {"calibrate": made.calibrated} if made.calibrated is not None else {}
    reports |= {"quantize": made.quantized} if made.quantized is not None else {}
    if common.fast is common.simple:
        del reports["optimize"]
    for name, entry in reports.items():
        shutil.copyfile(entry.folder / REPORT, evidence / f"{name}.json")
    for file in ("build.log", LAYERS_FILE):
        shutil.copyfile(made.plan.folder / file, evidence / file)
    if "originals.json" in common.original.files:
        shutil.copyfile(common.original.folder / "originals.json", evidence / "originals.json")
    return names


def _manifest(stages: Stages, common: Common, made: Made, *, name: str, names: _Names, folder: Path) -> Manifest:
    options, model, ranges = stages.options, common.model, common.ranges
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
        precision=made.way.precision,
        inputs=model.inputs,
        outputs=model.export.outputs,
        plan_inputs=made.inputs,
        plan_outputs=made.outputs,
        ranges=ranges,
        rules=model.export.rules,
        profiles=made.build.single,
        preprocess=model.preprocess,
        labels=None if common.labels is None else "labels.txt",
        graph=names.graph,
        precision_graph=names.precision_graph,
        plan=PLAN,
        family=stages.family.name,
        family_version=stages.family.version,
        reference_sizes={letter: r.opt for letter, r in ranges.items() if letter != batch_letter(model.inputs)},
        bounds=made.bounds,
        max_drop=options.max_drop,
        gates=Gates(max_rel_l2=options.max_rel_l2, min_cosine=options.min_cosine),
        verdicts=(),
        recipe=stages.recipe,
        files=hash_files(folder),
        tried=_tried(options, model),
    )


def _tried(options: DeployOptions, model: ModelReport) -> tuple[TriedInput, ...]:
    """What the inputs of the reference rows held."""
    pictures = options.eval_dir is not None and model.preprocess is not None and len(model.inputs) == 1
    real = model.samples or ("pictures of --eval" if pictures else "")
    return tried_inputs(model.inputs, model.domains, real=real)


def _weights(options: SourceOptions) -> str:
    if options.checkpoint is not None:
        return f"checkpoint {Path(options.checkpoint).name}"
    if options.pretrained:
        return "pretrained"
    return f"random, seed {options.seed}" if options.random_weights else "the source's own"
