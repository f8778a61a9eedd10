"""The stages of a deploy: each makes files in a folder from what came before, and is remembered by all its inputs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from trtship.bundle.verify import Originals
from trtship.cache import Cache, Entry
from trtship.deployment.options import DeployOptions, read_labels
from trtship.engine import LAYERS_FILE, plan_from_onnx
from trtship.errors import SpecError
from trtship.export import ExportReport, graph_from_source, sizes_around
from trtship.family import Family
from trtship.files import sha256_of
from trtship.graphs import load_graph, rounding_bound
from trtship.passes import simplify, to_precision
from trtship.passes.optimization import optimize
from trtship.passes.pass_report import OptimizeReport
from trtship.passes.registry import find_passes
from trtship.passes.thaw_unknown import thaw
from trtship.preprocess import Preprocess, preprocess_images
from trtship.progress import Progress
from trtship.session.base import Session
from trtship.session.onnxruntime import OnnxRuntimeSession
from trtship.session.torch import TorchSession
from trtship.sources import LoadedGraph, LoadedModel, Source
from trtship.spec import (
    DEFAULT_BATCH,
    Precision,
    Record,
    ShapeRange,
    TensorSpec,
    batch_letter,
    batch_range,
    classes_of,
    from_json,
    to_json,
)
from trtship.verify import Bound, Verdict
from trtship.verify.evaluate import predictions
from trtship.verify.folder import labelled_pictures
from trtship.verify.reference import ROWS, make_reference

GRAPH, PLAN, REPORT = "model.onnx", "model.plan", "report.json"


class StageResult(Record, frozen=True):
    """How a stage went: whether it was remembered, its seconds, what differs from its last run, and what it did to the
    graph where that is not always the same."""

    name: str
    cached: bool
    seconds: float
    changed: tuple[str, ...]
    did: str = ""


class ModelReport(Record, frozen=True):
    """The export stage's `report.json`."""

    export: ExportReport
    inputs: tuple[TensorSpec, ...]
    preprocess: Preprocess | None
    labels: tuple[str, ...] | None
    notes: tuple[str, ...]


class Stages:
    """Runs the stages for one deploy. The model is loaded at the first stage that needs it, and only then."""

    def __init__(
        self,
        source: Source,
        options: DeployOptions,
        *,
        cache: Cache,
        subject: str,
        family: Family,
        progress: Progress,
    ) -> None:
        self.source, self.options, self.family, self.progress = source, options, family, progress
        self._cache, self._subject = cache, subject
        self.results: list[StageResult] = []
        self.recipe: dict[str, Any] = {}

    @cached_property
    def model(self) -> LoadedModel | LoadedGraph:
        """The source, loaded."""
        return self.source.load(self.options.source, self.progress)

    def run(
        self,
        name: str,
        inputs: Mapping[str, Any],
        make: Callable[[Path], None],
        did: Callable[[Entry], str] = lambda entry: "",
    ) -> Entry:
        """One stage, from the cache where its inputs are known."""
        begun = time.monotonic()
        entry = self._cache.stage(name, inputs, make, subject=self._subject)
        self.results.append(
            StageResult(
                name=name,
                cached=entry.hit,
                seconds=round(time.monotonic() - begun, 2),
                changed=entry.changed,
                did=did(entry),
            )
        )
        return entry

    def export(self) -> tuple[Entry, ModelReport]:
        """Source -> fp32 ONNX graph, checked against PyTorch."""

        def make(folder: Path) -> None:
            model = self.model
            self.ranges(model.inputs)  # a size that is missing is told before the work, not after it
            report = graph_from_source(
                model,
                folder / GRAPH,
                ranges=self.options.sizes,
                opset=self.options.opset,
                exporter=self.options.exporter,
                thaw=thaw,
                progress=self.progress,
            )
            torch_model = model if isinstance(model, LoadedModel) else None
            found = ModelReport(
                export=report,
                inputs=model.inputs,
                preprocess=torch_model.preprocess if torch_model else None,
                labels=torch_model.labels if torch_model else None,
                notes=model.notes,
            )
            (folder / REPORT).write_bytes(to_json(found))

        def read(entry: Entry) -> ModelReport:
            return from_json(entry.read(REPORT), ModelReport, what="the export stage's report")

        def did(entry: Entry) -> str:
            thawed = read(entry).export.thawed
            return f"a frozen batch made dynamic, in {len(thawed)} places" if thawed else ""

        entry = self.run("export", self._part("model", "export", "sizes", "versions"), make, did)
        return entry, read(entry)

    def original(self, graph: Entry, model: ModelReport, ranges: Mapping[str, ShapeRange]) -> Entry:
        """What the original says: the reference rows, and its classes for the evaluation pictures."""

        def make(folder: Path) -> None:
            with (
                self._original_session(graph, model) as session,
                self.progress.stage("run the original", session.runtime),
            ):
                pictures = self._first_pictures(model)
                letter = batch_letter(model.inputs)
                sizes = {name: r.opt for name, r in ranges.items() if name != letter}
                make_reference(session, sizes=sizes, pictures=pictures).save(folder / "reference")
                if self.options.eval_dir is not None:
                    (folder / "originals.json").write_bytes(to_json(self._originals(session, model, ranges)))

        labels = ["labels"] if self.options.eval_dir is not None else []  # they tell which class a folder is
        repaired = {"graph": _graph_digests(graph)} if model.export.thawed else {}
        key = {**self._part("model", "sizes", "eval", "versions", *labels), **repaired}
        return self.run("original", key, make)

    def _original_session(self, graph: Entry, model: ModelReport) -> Session:
        """The model itself. A graph with a frozen batch is wrong at the reference's: the repaired one then."""
        loaded = self.model
        if isinstance(loaded, LoadedGraph):
            session = OnnxRuntimeSession(graph.folder / GRAPH if model.export.thawed else loaded.path)
            session.inputs, session.outputs = model.inputs, model.export.outputs  # in the file, sizes have other names
            return session
        return TorchSession(loaded.module, inputs=model.inputs, outputs=model.export.outputs)

    def _first_pictures(self, model: ModelReport) -> Any:
        """A few evaluation pictures, spread over the folder, preprocessed; None without a folder."""
        if self.options.eval_dir is None or model.preprocess is None:
            return None
        pictures = self._pictures(model)
        some = [pictures[i].path for i in np.linspace(0, len(pictures) - 1, ROWS // 2 + 1).astype(int)]
        return preprocess_images(some, model.preprocess)

    def _pictures(self, model: ModelReport) -> Any:
        return labelled_pictures(
            Path(self.options.eval_dir or ""), labels=self.labels(model), classes=classes_of(model.export.outputs)
        )

    def _originals(self, session: Session, model: ModelReport, ranges: Mapping[str, ShapeRange]) -> Originals:
        if model.preprocess is None:
            raise SpecError(
                "--eval needs a source that tells its preprocessing",
                why=f"{self.options.source.source} does not",
                do="leave --eval away",
            )
        pictures = self._pictures(model)
        limits = batch_range(model.inputs, ranges)
        found = predictions(
            session, pictures, model.preprocess, batch=limits.opt, fixed=limits.min > 1, progress=self.progress
        )
        return Originals(
            runtime=session.runtime,
            predictions={sha256_of(p.path): int(c) for p, c in zip(pictures, found, strict=True)},
        )

    def labels(self, model: ModelReport) -> tuple[str, ...] | None:
        """The user's, else the source's. Raises SpecError where their number is not the model's classes'."""
        if self.options.labels is None:
            return model.labels
        labels, classes = read_labels(Path(self.options.labels)), classes_of(model.export.outputs)
        if classes is not None and len(labels) != classes:
            raise SpecError(
                f"{self.options.labels} has {len(labels)} labels, and the model {classes} classes",
                why="each class needs one label, in the model's order",
                do="use the file that belongs to this model",
            )
        return labels

    def simplify(self, graph: Entry, model: ModelReport) -> Entry:
        """fp32 graph -> simpler fp32 graph, or the same where a check fails."""
        sizes = sizes_around(model.export.traced, self.options.sizes, batch=batch_letter(model.inputs))

        def make(folder: Path) -> None:
            with self.progress.stage("simplify", "with onnxsim"):
                report = simplify(graph.folder / GRAPH, folder / GRAPH, sizes=sizes, progress=self.progress)
            (folder / REPORT).write_bytes(to_json(report))

        return self.run("simplify", {"graph": _graph_digests(graph), **self._part("sizes", "versions")}, make)

    def optimize(self, graph: Entry, model: ModelReport) -> Entry:
        """fp32 graph -> one that TensorRT runs faster, proved the same; `graph` itself where no pass is to run."""
        names = self.options.passes
        if not names:
            return graph
        sizes = sizes_around(model.export.traced, self.options.sizes, batch=batch_letter(model.inputs))

        def make(folder: Path) -> None:
            report = optimize(
                graph.folder / GRAPH,
                folder / GRAPH,
                passes=find_passes(names),
                thaws=False,  # the export was checked at other batches
                sizes=sizes,
                together=True,
                progress=self.progress,
            )
            (folder / REPORT).write_bytes(to_json(report))

        def did(entry: Entry) -> str:
            return from_json(entry.read(REPORT), OptimizeReport, what="the optimize stage's report").summary

        inputs = {"graph": _graph_digests(graph), **self._part("passes", "sizes", "versions")}
        return self.run("optimize", inputs, make, did)

    def precision(self, graph: Entry) -> tuple[Entry, dict[str, Bound]]:
        """fp32 graph -> strongly typed graph of the wanted precision, and the bounds that rounding gives both."""
        precision = self.options.precision

        def make(folder: Path) -> None:
            with self.progress.stage("set the precision", precision.value):
                report = to_precision(graph.folder / GRAPH, folder / GRAPH, precision, io_dtype=self.options.io_dtype)
            (folder / REPORT).write_bytes(to_json(report))
            exact = rounding_bound(load_graph(graph.folder / GRAPH), Precision.FP32)
            rounded = rounding_bound(load_graph(folder / GRAPH), precision)
            found = {
                "graph fp32": _two(exact.bound, exact.bound, exact.derivation),
                f"graph {precision.value}": _two(rounded.bound, exact.bound, rounded.derivation),
            }
            found["plan"] = found[f"graph {precision.value}"]
            (folder / "bounds.json").write_bytes(to_json(found))

        inputs = {"graph": _graph_digests(graph), **self._part("precision", "io_dtype", "versions")}
        entry = self.run("precision", inputs, make)
        return entry, from_json(entry.read("bounds.json"), dict[str, Bound], what="bounds.json")

    def build(self, graph: Entry, inputs: tuple[TensorSpec, ...], ranges: Mapping[str, ShapeRange]) -> Entry:
        """Strongly typed graph -> plan."""

        def make(folder: Path) -> None:
            with self.progress.stage("build the plan", f"with {self.family}"):
                plan = plan_from_onnx(
                    graph.folder / GRAPH,
                    family=self.family,
                    inputs=inputs,
                    ranges=ranges,
                    precision=self.options.precision,
                    targets=self.options.targets,
                    progress=self.progress,
                )
            (folder / PLAN).write_bytes(plan.data)
            (folder / "build.log").write_text(plan.log)
            (folder / LAYERS_FILE).write_bytes(to_json(plan.layers))
            (folder / REPORT).write_bytes(to_json(plan.report))

        key = {
            "graph": _graph_digests(graph),
            "ranges": {letter: str(r) for letter, r in ranges.items()},
            "tf32": self.options.precision.tf32,
            **self._part("family", "targets", "gpu"),
        }
        return self.run("build", key, make)

    def verify(self, key: Mapping[str, Any], check: Callable[[], tuple[Verdict, ...]]) -> tuple[Verdict, ...]:
        """The verdicts of this machine."""

        def make(folder: Path) -> None:
            (folder / REPORT).write_bytes(to_json(check()))

        entry = self.run("verify", {**key, **self._part("family", "gpu", "eval", "max_drop", "versions")}, make)
        return from_json(entry.read(REPORT), tuple[Verdict, ...], what="the verify stage's report")

    def ranges(self, inputs: tuple[TensorSpec, ...]) -> dict[str, ShapeRange]:
        """A range for every letter. Raises SpecError for one missing, and for --batch on a fixed batch."""
        letter, batch = batch_letter(inputs), self.options.batch
        if letter is None and batch is not None and tuple(map(str, inputs[0].shape[:1])) != (str(batch),):
            raise SpecError(
                f"--batch {batch} does not fit the model",
                why=f"its input {inputs[0]} has a fixed batch",
                do="leave --batch away, or make the model's batch dynamic",
            )
        if letter in self.options.sizes:
            raise SpecError(f"--size {letter}: that is the batch", why=f"as in {inputs[0]}", do="use --batch for it")
        given = {**self.options.sizes, **({letter: batch or DEFAULT_BATCH} if letter else {})}
        wanted = {name for spec in inputs for name in spec.letters}
        for name in sorted(given.keys() - wanted):
            raise SpecError(
                f"--size {name}: no input has a dynamic size {name}",
                why=f"the inputs are {', '.join(map(str, inputs))}",
                do="leave it away",
            )
        for name in sorted(wanted - given.keys()):
            raise SpecError(
                f"no range for the dynamic size {name}",
                why=f"the inputs are {', '.join(map(str, inputs))}",
                do=f"add --size {name}=MIN:OPT:MAX",
            )
        return {name: given[name] for name in sorted(wanted)}

    def _part(self, *names: str) -> dict[str, Any]:
        return {name: self.recipe[name] for name in names}


def _graph_digests(entry: Entry) -> dict[str, str]:
    return {name: digest for name, digest in entry.files.items() if name.startswith(GRAPH)}


def _two(subject: float, original: float, derivation: str) -> Bound:
    """Both the subject and the original round: their bounds add up."""
    return Bound(value=subject + original, source=f"{derivation}; plus that of the fp32 original")
