"""Everything that a deploy depends on: what was asked for, and the recipe that it makes on this machine."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec

from trtship import __version__
from trtship.calibrate.feeds import digest_of_feeds, feed_files
from trtship.calibrate.records import DEFAULT_METHOD, Method, parse_method
from trtship.deployment.quantized import check_quantized
from trtship.deployment.search_options import AUTO, check_search, parse_candidates, parse_duration
from trtship.engine.profiles import parse_profiles
from trtship.errors import OutputError, SpecError
from trtship.export.onnx import check_opset
from trtship.export.source import parse_exporter
from trtship.files import open_regular, read_bounded, sha256_of
from trtship.gpu import list_gpus
from trtship.input_files import FileSource, SampleSource
from trtship.input_ranges import parse_input_ranges
from trtship.passes.quantize_places import Scope, parse_scope
from trtship.passes.registry import ALL, parse_passes
from trtship.pictures import list_image_folder
from trtship.sources import SourceOptions
from trtship.spec import Precision, Record, ShapeRange, parse_sizes

MAX_LABEL_BYTES = 16 * 2**20
"""Of a file of labels; ImageNet's 21,841 classes take 0.5 MB."""
PACKAGES = ("torch", "onnx", "onnxscript", "onnx-ir", "onnxsim", "onnxruntime", "numpy", "pillow")


def _precision(text: str) -> Precision | None:
    """None for `"auto"`. Raises SpecError."""
    if text == AUTO:
        return None
    try:
        return Precision.parse(text)
    except SpecError as error:
        raise SpecError(error.what, why=f"{error.why}, and {AUTO}", do=error.do) from None


class DeployOptions(Record, frozen=True):
    """What `deploy` was asked to do.

    `batch` is None for the default (1:8:32, or the model's own where that is fixed); `sizes` are the ranges of the
    other letters; `profiles` are the batch sizes with kernels of their own (None: min, opt and max); `io_dtype` is the
    type of the plan's floating inputs and outputs; `passes` are the names of the rewrites that make the graph faster,
    in the order in which they run; `max_drop` is in points of top-1.

    `precision` is None for `auto`. `max_rel_l2` and `min_cosine` are gates on the outputs, worst row. Of a search:
    `candidates` are its names (empty: all), `time_budget` is in seconds. Of fp8 and int8: `calib_dir` has the pictures
    to calibrate on (None: those of `eval_dir`), `calib_method` and `scope` are as `trtship.calibrate` and
    `trtship.passes.quantize_places` say. `input_files` have the user's own inputs, `input_ranges` are the ranges of
    values for those who have none.
    """

    source: SourceOptions
    precision: Precision | None = Precision.FP16
    batch: ShapeRange | None = None
    sizes: dict[str, ShapeRange] = msgspec.field(default_factory=dict)
    profiles: tuple[int, ...] | None = None
    io_dtype: str = "float32"
    opset: int | None = None
    exporter: str | None = None
    passes: tuple[str, ...] = msgspec.field(default_factory=lambda: parse_passes(ALL))
    family: str | None = None
    targets: tuple[str, ...] = ()
    eval_dir: str | None = None
    labels: str | None = None
    max_drop: float = 0.5
    max_rel_l2: float | None = None
    min_cosine: float | None = None
    candidates: tuple[str, ...] = ()
    calib_dir: str | None = None
    calib_method: Method = DEFAULT_METHOD
    scope: Scope = "fused"
    time_budget: float | None = None
    input_files: tuple[str, ...] = ()
    input_ranges: dict[str, tuple[float, float]] = msgspec.field(default_factory=dict)

    @staticmethod
    def parse(
        source: SourceOptions,
        *,
        precision: str,
        batch: str | None,
        sizes: Sequence[str],
        profiles: str | None,
        passes: str,
        targets: Sequence[str],
        eval_dir: str | Path | None,
        labels: str | Path | None,
        calib_dir: str | Path | None = None,
        calib_method: str = DEFAULT_METHOD,
        quantize: str = "fused",
        candidates: str | None = None,
        time_budget: str | None = None,
        input_files: Sequence[str | Path] = (),
        input_ranges: Sequence[str] = (),
        **others: Any,
    ) -> DeployOptions:
        """From what was typed. Raises SpecError."""
        return DeployOptions(
            source=source,
            precision=_precision(precision),
            batch=None if batch is None else ShapeRange.parse(batch),
            sizes=parse_sizes(sizes),
            profiles=parse_profiles(profiles),
            passes=parse_passes(passes),
            targets=tuple(dict.fromkeys(targets)),
            eval_dir=None if eval_dir is None else str(eval_dir),
            labels=None if labels is None else str(labels),
            calib_dir=None if calib_dir is None else str(calib_dir),
            calib_method=parse_method(calib_method),
            scope=parse_scope(quantize),
            candidates=() if candidates is None else parse_candidates(candidates),
            time_budget=None if time_budget is None else parse_duration(time_budget, "--time-budget"),
            input_files=tuple(map(str, input_files)),
            input_ranges=parse_input_ranges(input_ranges),
            **others,
        )

    @property
    def given(self) -> SampleSource | None:
        """The user's own inputs, where files have them."""
        return FileSource(self.input_files) if self.input_files else None

    def check(self, given: SampleSource | None = None) -> None:
        """Raises SpecError for values that cannot go together, ImageError, InputError or OutputError for files missing.

        `given` are the user's own inputs.
        """
        check_search(self, has_inputs=given is not None)
        if isinstance(given, FileSource):
            given.check()
        low = "float32" if self.precision is None else self.precision.graph_dtype
        if self.io_dtype not in ("float32", low):
            raise SpecError(
                f"--io-dtype {self.io_dtype} does not go with --precision {self.precision_name}",
                why=f"it takes {' or '.join(sorted({'float32', low}))}",
                do="leave it away for float32",
            )
        if self.io_dtype == "bfloat16":
            raise SpecError("--io-dtype bfloat16 is not supported", why="numpy has no such type", do="leave it away")
        if not 0 <= self.max_drop <= 100:
            raise SpecError(
                f"--max-drop {self.max_drop} is no number of points", why="it takes 0 to 100", do="0.5 is usual"
            )
        check_opset(self.opset)
        parse_exporter(self.exporter)
        if self.eval_dir is not None:
            list_image_folder(self.eval_dir)
        if self.calib_dir is not None:
            feed_files(Path(self.calib_dir))
        if self.precision is not None and self.precision.quantized:
            calib = self.calib_dir or self.eval_dir or (None if given is None else given.origin)
            check_quantized(self.precision, scope=self.scope, calib=calib, targets=self.targets)
        if self.labels is not None:
            read_labels(Path(self.labels))

    @property
    def precision_name(self) -> str:
        """As it is typed."""
        return AUTO if self.precision is None else self.precision.value


def read_labels(path: Path) -> tuple[str, ...]:
    """Return the labels in a text file, one a line. Raises SpecError."""
    try:
        with open_regular(path) as file:
            data = read_bounded(file, MAX_LABEL_BYTES)
        if len(data) > MAX_LABEL_BYTES:
            raise SpecError(
                f"cannot read the labels in {path}",
                why=f"it has more than {MAX_LABEL_BYTES} bytes",
                do="name a text file, one a line",
            )
        labels = tuple(line.strip() for line in data.decode().splitlines())
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise SpecError(f"cannot read the labels in {path}", why=str(why), do="name a text file, one a line") from error
    if not labels or not all(labels):
        raise SpecError(f"{path} holds no labels", why="it is empty, or has empty lines", do="one label a line")
    return labels


def recipe_of(
    options: DeployOptions, *, model: dict[str, str], family: str, given: SampleSource | None = None
) -> dict[str, Any]:
    """All that the bundle's content follows from, as plain JSON values: the same recipe, the same bundle.

    `given` are the user's own inputs.
    """
    gpus = list_gpus()
    inputs = None if given is None else given.digest()
    return {
        "model": model,
        "export": {"opset": options.opset, "exporter": options.exporter},
        "passes": list(options.passes),
        "precision": options.precision_name,
        "io_dtype": options.io_dtype,
        "batch": None if options.batch is None else str(options.batch),
        "sizes": {letter: str(r) for letter, r in sorted(options.sizes.items())},
        "profiles": None if options.profiles is None else list(options.profiles),
        "family": family,
        "targets": list(options.targets),
        "gpu": [gpus[0].name, gpus[0].compute_capability, gpus[0].driver] if gpus else None,
        "labels": None if options.labels is None else sha256_of(Path(options.labels)),
        "eval": None if options.eval_dir is None else digest_of_pictures(Path(options.eval_dir)),
        "max_drop": options.max_drop,
        "max_rel_l2": options.max_rel_l2,
        "min_cosine": options.min_cosine,
        "candidates": list(options.candidates),
        "inputs": inputs,
        "input_ranges": {name: list(ends) for name, ends in sorted(options.input_ranges.items())},
        "calib": _calibration_of(options, inputs),
        "versions": versions(),
    }


def _calibration_of(options: DeployOptions, inputs: str | None) -> dict[str, str] | None:
    """What fp8 and int8 follow from; None where neither is asked for. `inputs` is the digest of the user's own."""
    if options.precision is not None and not options.precision.quantized:
        return None
    files = ""
    if options.scope != "weights":
        folder = options.calib_dir or (options.eval_dir if inputs is None else None)
        files = (inputs or "") if folder is None else digest_of_feeds(Path(folder))
    return {"files": files, "method": options.calib_method, "scope": options.scope}


def versions() -> dict[str, str]:
    """The installed versions of all that takes part, read without importing any of it."""
    found = {"trtship": __version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def digest_of_pictures(folder: Path) -> str:
    """SHA-256 over the names and contents of a picture folder."""
    classes, pictures = list_image_folder(folder)
    whole = hashlib.sha256()
    try:
        for path, target in pictures:
            whole.update(f"{classes[target]}/{path.name} {sha256_of(path)}\n".encode())
    except OSError as error:
        raise OutputError(
            f"cannot read {error.filename}", why=error.strerror or str(error), do="mend its permissions, or remove it"
        ) from error
    return whole.hexdigest()
