"""Run one exporter on a module: what it writes, and what it relied on. Each runs in a process of its own."""

from __future__ import annotations

import contextlib
import importlib
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from traceback import format_exception
from typing import Any, Literal

import msgspec

from trtship.errors import GraphError, TrtshipError
from trtship.export.capture import Captured, DecidesByValues, capture, dynamic_shapes
from trtship.export.conditions import Conditions
from trtship.export.isolated import run_isolated
from trtship.export.lines import Line
from trtship.export.sizes import sizes_to_trace
from trtship.export.traces import Traced, as_program, compare_traces, holds_programs
from trtship.files import temporary_folder
from trtship.graphs import load_graph, save_graph
from trtship.input_values import InputDomain, random_inputs
from trtship.spec import ShapeRange, TensorSpec, batch_letter

HEAVY = ("onnxscript", "torch._dynamo", "torch.onnx._internal.exporter._core")
"""Modules that exporters import, which takes seconds."""
Exporter = Literal["dynamo", "torchscript"]


class Job(msgspec.Struct, frozen=True):
    """What is to be exported, the same for every exporter."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[str, ...]
    traced: dict[str, int]
    ranges: dict[str, ShapeRange]
    opset: int
    external_over: int
    domains: Mapping[str, InputDomain] | None = None


class Made(msgspec.Struct, frozen=True):
    """What came of one exporter.

    `conditions` are None where torch.export did not get to the end. `decides` is the line of the model that decides by
    a value of an input's: no graph is the model then. `failure` says in one line why there is no graph, `details` is
    the exporter's traceback. `traced` is what TorchScript's traces show.
    """

    conditions: Conditions | None = None
    decides: Line | None = None
    failure: str = ""
    details: str = ""
    traced: Traced = Traced()


def export_dynamo(module: Any, job: Job, target: Path) -> Made:
    """Write the dynamo exporter's graph to `target`.

    Raises OutputError, and GraphError for a graph that cannot be written; other failures are in the result.
    """

    def work(copy: Any, folder: Path) -> Made:
        import torch

        captured, made = _captured(copy, job)
        if captured is None:
            return made
        letters = dynamic_shapes(copy, job.inputs, str)
        names = {"input_names": [s.name for s in job.inputs], "output_names": list(job.outputs)}
        _keep_small_constants()
        try:
            program = torch.onnx.export(
                captured.program,
                dynamo=True,
                dynamic_shapes=letters,
                opset_version=job.opset,
                verbose=False,
                **names,  # type: ignore[arg-type]
            )
            assert program is not None
            model = program.model
            for value, spec in zip(model.graph.inputs, job.inputs, strict=False):
                _name_sizes(value, spec)
        except Exception as error:
            return _failed(error, captured.conditions)
        _write(model, folder / target.name, job)
        return made

    return _apart(work, module, target, "the dynamo exporter")


def _keep_small_constants() -> None:
    """Let no rewrite of onnxscript take a constant of at most 1e-8 for 0, in this process.

    Its patterns match constants with `math.isclose(abs_tol=1e-8)`, so `x + 0` becomes `x` for `x + 1e-8` as well, and
    `x / (norm + 1e-8)` divides by 0 (onnxscript 0.7, rewriter/_pattern_ir.py). A version without this class is left as
    it is: the edge rows of zeros (`trtship.verify.edges`) find what is dropped.
    """
    try:
        constant = importlib.import_module("onnxscript.rewriter._pattern_ir").Constant
    except (ImportError, AttributeError):
        return
    constant._abs_tol = property(lambda self: 0.0, lambda self, value: None)


def export_torchscript(module: Any, job: Job, target: Path, conditions: Conditions | None) -> Made:
    """Write the TorchScript exporter's graph to `target`, unless traces at other values show that it is not the model.

    Args:
        module: The module.
        job: What to export.
        target: Where to write.
        conditions: Those of torch.export; without them, traces at other sizes are compared too.

    Raises:
        OutputError: `target` cannot be written.
        GraphError: the graph cannot be written, or the exporter's process crashed; other failures are in the result.
    """
    complete = conditions is not None and not conditions.unknown
    others = () if complete else sizes_to_trace(job.traced, job.ranges, batch=batch_letter(job.inputs))

    def work(copy: Any, folder: Path) -> Made:
        import torch

        draft = folder / "draft" / target.name
        draft.parent.mkdir()
        axes = {s.name: _axes(s) for s in job.inputs if _axes(s)}
        batch = batch_letter(job.inputs)
        if batch is not None:
            axes |= {name: {0: batch} for name in job.outputs}
        try:
            traced = compare_traces(copy, job.inputs, job.traced, domains=job.domains, others=others)
            if traced.values or traced.differs:
                return Made(traced=traced, decides=traced.values[0] if traced.values else None, failure=traced.differs)
            example = example_of(job)
            torch.onnx.export(
                as_program(copy, example) if holds_programs(copy) else copy,
                example,
                str(draft),
                dynamo=False,
                dynamic_axes=axes,
                input_names=[s.name for s in job.inputs],
                output_names=list(job.outputs),
                opset_version=job.opset,
            )
            model = load_graph(draft)
        except OSError:  # a full disk says nothing about the model
            raise
        except Exception as error:
            return _failed(error)
        _write(model, folder / target.name, job)
        return Made(traced=traced)

    return _apart(work, module, target, "the TorchScript exporter")


def conditions_only(module: Any, job: Job, target: Path) -> Made:
    """What torch.export relies on, without a graph."""
    return _apart(lambda copy, folder: _captured(copy, job)[1], module, target, "torch.export")


def _apart(work: Callable[[Any, Path], Made], module: Any, target: Path, what: str) -> Made:
    """Run in a process of its own; the files that it wrote go to `target`'s folder when it ended well."""
    for name in HEAVY:  # imported once here, and not in every child
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    with temporary_folder(beside=target) as folder:
        made = run_isolated(partial(_quietly, work, folder=folder), module, folder=folder, what=what)
        written = [folder / name for name in (f"{target.name}.data", target.name) if (folder / name).is_file()]
        if written:
            target.with_name(f"{target.name}.data").unlink(missing_ok=True)  # another exporter's
        for file in written:
            file.replace(target.parent / file.name)
    return made


def _quietly(work: Callable[[Any, Path], Made], module: Any, *, folder: Path) -> Made:
    import torch

    with _hush(), torch.inference_mode(False), torch.no_grad():
        return work(module, folder)


def _captured(module: Any, job: Job) -> tuple[Captured | None, Made]:
    try:
        captured = capture(module, example_of(job), job.inputs, job.ranges)
    except DecidesByValues as found:
        return None, Made(decides=found.line)
    except Exception as error:
        return None, _failed(error)
    return captured, Made(conditions=captured.conditions)


def example_of(job: Job) -> tuple[Any, ...]:
    """Return the tensors that the exporters trace with, one for each input, at the traced sizes."""
    import torch

    feeds = random_inputs(job.inputs, job.traced, seed=1, domains=job.domains)
    return tuple(torch.from_numpy(feeds[spec.name]) for spec in job.inputs)


def _axes(spec: TensorSpec) -> dict[int, str]:
    return {axis: size for axis, size in enumerate(spec.shape) if isinstance(size, str)}


def _name_sizes(value: Any, spec: TensorSpec) -> None:
    """A size that the exporter took for another's, or for a constant, keeps its letter in the input's shape."""
    import onnx_ir

    if value.name == spec.name and value.shape is not None and len(value.shape) == len(spec.shape):
        value.shape = onnx_ir.Shape(spec.shape)


def _write(model: Any, path: Path, job: Job) -> None:
    found = model.opset_imports.get("")
    if found != job.opset:  # the dynamo exporter starts at 18, and leaves at that what it cannot convert
        raise GraphError(
            "the graph is not in the opset asked for",
            why=f"the exporter wrote opset {found}, not {job.opset}",
            do="try the other --exporter, or another --opset",
        )
    save_graph(model, path, external_over=job.external_over)


def _failed(error: Exception, conditions: Conditions | None = None) -> Made:
    return Made(conditions=conditions, failure=_first_line(error), details="".join(format_exception(error)))


def _first_line(error: BaseException) -> str:
    """The innermost cause's first line with words in it: exporters wrap it in pages of advice."""
    if isinstance(error, TrtshipError):
        return error.why or error.what
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if any(c.isalpha() for c in line)]
    return f"{type(error).__name__}: {lines[0][:300] if lines else 'no message'}"


@contextlib.contextmanager
def _hush() -> Iterator[None]:
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
