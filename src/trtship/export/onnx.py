"""Export with the dynamo exporter, or with the TorchScript one where that fails, and believe neither.

An export counts only when its outputs are PyTorch's at the traced batch and at two others: exporters turn a batch
size into a constant without a word where a model computes with it (`int(x.shape[0] / n)`).
"""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from trtship.errors import ExportMismatchError, GateError, GraphError, SpecError, TrtshipError
from trtship.export.check import check_export
from trtship.export.mend import Thaw, check_and_mend
from trtship.export.outputs import settle_outputs
from trtship.files import temporary_folder
from trtship.graphs import EXTERNAL_OVER, load_graph, save_graph
from trtship.input_values import TriedInput
from trtship.measure import Measure, random_inputs
from trtship.needs import need
from trtship.progress import SILENT, Progress
from trtship.spec import Record, ShapeRange, TensorSpec, batch_letter

Exporter = Literal["dynamo", "torchscript"]
EXPORTERS: tuple[Exporter, ...] = ("dynamo", "torchscript")
DEFAULT_OPSET = 20
OPSETS = range(17, 24)
"""17 brought LayerNormalization as one operator, which the precision pass relies on."""

TRACED = 2
"""The batch size to trace with: torch.export specializes on 0 and 1."""


class ExportReport(Record, frozen=True):
    """How the graph was made and how far it is from PyTorch; `fell_back` says why the dynamo exporter was not used,
    `thawed` names the nodes in which the batch was a constant and is dynamic again, `inputs` tell what values it was
    checked on."""

    exporter: str
    opset: int
    traced: dict[str, int]
    fell_back: str
    bound: float
    bound_from: str
    checks: tuple[Measure, ...]
    outputs: tuple[TensorSpec, ...]
    thawed: tuple[str, ...] = ()
    inputs: tuple[TriedInput, ...] = ()


def onnx_from_torch(
    module: Any,
    target: Path,
    *,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[str],
    ranges: Mapping[str, ShapeRange] | None = None,
    opset: int | None = None,
    exporter: Exporter | None = None,
    thaw: Thaw | None = None,
    external_over: int = EXTERNAL_OVER,
    progress: Progress = SILENT,
) -> ExportReport:
    """Write `module` (eval mode, on the CPU) to `target`; each letter of `inputs` becomes a dynamic size of that name.

    `ranges` bounds the letters other than the batch (the traced size is their opt). Weights of more than
    `external_over` bytes go to `target.name + ".data"`. A graph that is wrong at other batches than the traced one is
    given to `thaw`, and checked again.

    Raises SpecError (opset, a letter without a range), GraphError (no exporter takes the model), SourceError (the
    model gives NaN), ExportMismatchError (its graph is not the model, at some batch).
    """
    check_opset(opset)
    opset = DEFAULT_OPSET if opset is None else opset
    traced = traced_sizes(inputs, ranges or {})
    failures: list[TrtshipError] = []
    for candidate in [exporter] if exporter else EXPORTERS:
        try:
            with progress.stage("export", f"with the {candidate} exporter, opset {opset}"):
                _run(candidate, module, target, inputs, outputs, traced, opset, external_over, ranges or {})
            with progress.stage("check the export", "against PyTorch"):
                checked, thawed = check_and_mend(
                    lambda: check_export(
                        module, target, inputs=inputs, outputs=outputs, traced=traced, ranges=ranges or {}
                    ),
                    target,
                    thaw=thaw,
                    batch=batch_letter(inputs),
                    traced=TRACED,
                    sizes=traced,
                    external_over=external_over,
                    progress=progress,
                )
        except (GraphError, GateError) as error:
            failures.append(error)
            if exporter is None and candidate != EXPORTERS[-1]:
                progress.note(f"the {candidate} exporter will not do: {_line(error)}; trying the TorchScript exporter")
            continue
        return ExportReport(
            exporter=candidate,
            opset=opset,
            traced=dict(traced),
            fell_back=_line(failures[0]) if failures else "",
            bound=checked.bound,
            bound_from=checked.bound_from,
            checks=checked.measures,
            outputs=settle_outputs(target, checked.outputs, checked.shapes, external_over=external_over),
            thawed=thawed,
        )
    wrong = [f for f in failures if isinstance(f, ExportMismatchError)]
    if wrong:
        raise wrong[0]  # the dynamo exporter's graph tells the lines of the model
    raise failures[0]


def check_opset(opset: int | None) -> None:
    """Raises SpecError for one that is not supported; None is the default."""
    if opset is not None and opset not in OPSETS:
        raise SpecError(
            f"--opset {opset} is not supported",
            why=f"it takes {OPSETS[0]} to {OPSETS[-1]}",
            do=f"leave it away for {DEFAULT_OPSET}",
        )


def traced_sizes(inputs: Sequence[TensorSpec], ranges: Mapping[str, ShapeRange]) -> dict[str, int]:
    """The size that each letter has in the example: 2 for the batch, opt for the others. Raises SpecError for one of
    these that has no range: a model need not take any size that one could guess."""
    batch = batch_letter(inputs)
    letters = dict.fromkeys(letter for spec in inputs for letter in spec.letters)
    missing = [letter for letter in letters if letter != batch and letter not in ranges]
    if missing:
        raise SpecError(
            f"no range for the dynamic size {missing[0]}",
            why=f"the inputs are {', '.join(map(str, inputs))}",
            do=f"add --size {missing[0]}=MIN:OPT:MAX",
        )
    return {letter: TRACED if letter == batch else ranges[letter].opt for letter in letters}


def _line(error: TrtshipError) -> str:
    return (error.why or error.what).strip().splitlines()[0][:200]


def _run(
    exporter: Exporter,
    module: Any,
    target: Path,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[str],
    traced: Mapping[str, int],
    opset: int,
    external_over: int,
    ranges: Mapping[str, ShapeRange],
) -> None:
    torch = need("torch", purpose="exporting a PyTorch model")
    need("onnxscript", purpose="exporting to ONNX")
    feeds = random_inputs(inputs, traced, seed=1)
    example = tuple(torch.from_numpy(feeds[spec.name]) for spec in inputs)
    names = {"input_names": [s.name for s in inputs], "output_names": list(outputs), "opset_version": opset}
    axes = [{axis: size for axis, size in enumerate(s.shape) if isinstance(size, str)} for s in inputs]
    try:
        with _hush(), torch.inference_mode(False), torch.no_grad():
            if exporter == "dynamo":
                dims = {letter: torch.export.Dim(letter, **_limits(ranges.get(letter))) for letter in traced}
                shapes = tuple({axis: dims[letter] for axis, letter in a.items()} for a in axes)
                program = torch.onnx.export(
                    module, example, dynamo=True, dynamic_shapes=_spread(module, shapes), verbose=False, **names
                )
                _write(program.model, target, opset, external_over)
            else:
                batch = batch_letter(inputs)
                dynamic: dict[str, Any] = {s.name: a for s, a in zip(inputs, axes, strict=True) if a}
                if batch is not None:
                    dynamic |= {name: {0: batch} for name in outputs}
                with temporary_folder(beside=target) as folder:  # large models: one file a weight
                    draft = folder / target.name
                    torch.onnx.export(module, example, str(draft), dynamo=False, dynamic_axes=dynamic, **names)
                    _write(load_graph(draft), target, opset, external_over)
    except (TrtshipError, OSError):  # a full disk says nothing about the model
        raise
    except Exception as error:
        raise GraphError(
            f"the {exporter} exporter cannot export this model",
            why=_first_line(error),
            do="try the other --exporter, or another --opset; --debug shows the exporter's own traceback",
        ) from error


def _write(model: Any, target: Path, opset: int, external_over: int) -> None:
    found = model.opset_imports.get("")
    if found != opset:  # the dynamo exporter starts at 18, and leaves at that what it cannot convert
        raise GraphError(
            "the graph is not in the opset asked for",
            why=f"the exporter wrote opset {found}, not {opset}",
            do="try the other --exporter, or another --opset",
        )
    save_graph(model, target, external_over=external_over)


def _limits(sizes: ShapeRange | None) -> dict[str, int]:
    """What torch.export may assume of a dynamic size; it takes no range of one size."""
    return {"min": sizes.min, "max": sizes.max} if sizes and sizes.min < sizes.max else {"min": 1, "max": 2**16}


def _spread(module: Any, shapes: tuple[dict[int, Any], ...]) -> tuple[Any, ...]:
    """`dynamic_shapes` in the form that torch.export wants: nested once more where forward takes `*args`."""
    import inspect

    parameters = list(inspect.signature(module.forward).parameters.values())
    if parameters and parameters[0].kind is inspect.Parameter.VAR_POSITIONAL:
        return (shapes,)
    return shapes


def _first_line(error: BaseException) -> str:
    """The innermost cause's first line with words in it: exporters wrap it in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if any(c.isalpha() for c in line)]
    return f"{type(error).__name__}: {lines[0][:300] if lines else 'no message'}"


@contextlib.contextmanager
def _hush() -> Any:
    """Exporters chat on stdout, in warnings and in logs: none of it is the user's result."""
    loggers = [logging.getLogger(name) for name in ("torch", "torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
