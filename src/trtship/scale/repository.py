"""A bundle as a model of a Triton model repository: REPO/NAME with its config, labels and version 1, or nothing."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from pathlib import Path

import msgspec

from trtship.bundle.bundle import Bundle
from trtship.bundle.replacing import require_only_ours
from trtship.errors import OutputError, SpecError
from trtship.files import check_writable, open_regular, read_bounded, whole_folder, writing
from trtship.progress import SILENT, Progress
from trtship.scale.batching import Batching, batching_of
from trtship.scale.config import LABELS, VERSION, config_text, is_ours, remarks_of
from trtship.scale.layout import Layout
from trtship.scale.served import Format, Served, served_of
from trtship.scale.speeds import graph_speeds, plan_speeds
from trtship.spec import TensorSpec

CONFIG = "config.pbtxt"
SUFFIX = ".trtship"
MAX_CONFIG_BYTES = 2**20
"""Of a config that is looked at before its folder is replaced."""
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


class Exported(msgspec.Struct, frozen=True):
    """What was written: `model` is its folder, `files` are those in it; `notes` say what was chosen, why, and what is
    not known."""

    model: Path
    name: str
    format: Format
    max_batch_size: int
    batching: Batching
    files: tuple[str, ...]
    notes: tuple[str, ...]


def export_triton(
    bundle: Bundle,
    repository: str | Path,
    *,
    name: str | None = None,
    format: Format | None = None,
    instances: int | None = None,
    force: bool = False,
    progress: Progress = SILENT,
) -> Exported:
    """Write the model's folder, whole or not at all; `name` is by default the bundle's folder without `.trtship`.

    `format` is `plan` or `onnx` (default: the plan, where Triton can load it), `instances` those on each GPU (default:
    from the bundle's measured speeds). With `force` a model of that name is replaced whole,
    where it was exported so and has no other files, such as other versions.

    Raises SpecError, OutputError, GateError, DependencyError; BundleCorruptError where a file changed since it was
    opened.
    """
    m = bundle.manifest
    name = _name_of(bundle) if name is None else _checked(name)
    target = Path(repository) / name
    _check_place(bundle, target, force=force)
    if m.rules:
        raise SpecError(
            f"the model in {bundle.folder} has rules on its sizes, which Triton would not keep to",
            why=f"it is the model only where {' and '.join(map(str, m.rules))}; other sizes would give wrong answers",
            do="deploy it with --batch and --size ranges without such sizes, or serve it through trtship.load",
        )
    served = served_of(bundle, format, progress=progress)
    layout = Layout.of(served.inputs, served.outputs, m.ranges)
    batching = _batching(bundle, served, layout, instances)
    labelled, unlabelled = _labelled(bundle, layout)
    config = config_text(name, m, served, layout, batching, labelled=labelled)
    with whole_folder(target, replace=_check_replaceable if force else False) as draft, writing(target):
        (draft / CONFIG).write_text(config, encoding="utf-8")
        if labelled is not None and m.labels is not None:
            (draft / LABELS).write_bytes(bundle.read(m.labels))
        (draft / str(VERSION)).mkdir()
        for file, own in served.files.items():
            (draft / str(VERSION) / file).write_bytes(bundle.read(own))
        files = tuple(sorted(p.relative_to(draft).as_posix() for p in draft.rglob("*") if p.is_file()))
    notes = (*served.why, *batching.why, *remarks_of(m, served), *unlabelled)
    return Exported(target, name, served.format, layout.max_batch_size, batching, files, notes)


def _name_of(bundle: Bundle) -> str:
    own = Path(os.path.abspath(bundle.folder)).name.removesuffix(SUFFIX)
    return _checked(re.sub(r"[^A-Za-z0-9_.-]", "_", own).lstrip(".-") or "model")


def _checked(name: str) -> str:
    if not NAME.fullmatch(name) or len(name) > 200:
        raise SpecError(
            f"--name {name!r} is no name for a model",
            why="it becomes a folder and a part of URLs: letters, digits, _ . and -, a letter, digit or _ first",
            do="for example --name swin",
        )
    return name


def _check_place(bundle: Bundle, target: Path, *, force: bool) -> None:
    """Before any work is done. Raises OutputError."""
    with writing(target):
        if Path(os.path.realpath(target)).is_relative_to(os.path.realpath(bundle.folder)):
            raise OutputError(f"{target} is in the bundle itself", why="a bundle is not written to", do="name another")
        if os.path.lexists(target) and not force:
            raise OutputError(
                f"{target} exists",
                why="it is not replaced unasked",
                do="--force replaces it whole, or choose another --name",
            )
        if os.path.lexists(target):
            _check_replaceable(target)
    check_writable(target)


def _check_replaceable(target: Path) -> None:
    """Raises OutputError for a folder that is not a model that trtship exported, or that has other files."""
    require_only_ours(target, _exported_files, kind="model of Triton's", proof=f"it has no {CONFIG} that trtship wrote")


def _exported_files(target: Path) -> Collection[str] | None:
    """What `export_triton` writes to a model's folder; None where its config does not say that it was written so."""
    try:
        with open_regular(target / CONFIG) as file:
            text = read_bounded(file, MAX_CONFIG_BYTES).decode()
    except (OSError, UnicodeDecodeError):
        return None
    if not is_ours(text):
        return None
    version = target / str(VERSION)
    own = [path.name for path in version.iterdir()] if version.is_dir() else []
    return {
        CONFIG,
        LABELS,
        *(f"{VERSION}/{name}" for name in own if name == "model.plan" or name.startswith("model.onnx")),
    }


def _batching(bundle: Bundle, served: Served, layout: Layout, asked: int | None) -> Batching:
    if served.format == "plan":
        return batching_of(plan_speeds(bundle), layout.batch, what="the plan", asked=asked)
    timed = served.files["model.onnx"] == bundle.manifest.precision_graph
    speeds = graph_speeds(bundle) if timed else None
    return batching_of(speeds, layout.batch, what="the graph on onnxruntime's CUDA provider", asked=asked)


def _labelled(bundle: Bundle, layout: Layout) -> tuple[TensorSpec | None, tuple[str, ...]]:
    """The output that the labels are of: the first with as many numbers a row as there are labels. And what to say of
    labels that are of none."""
    labels = bundle.labels
    if labels is None:
        return None, ()
    for spec in layout.outputs:
        if spec.shape[-1] == len(labels) and len(spec.shape) == 2:
            return spec, ()
    return None, (f"the {len(labels)} labels are not written: no output has as many numbers a row",)
