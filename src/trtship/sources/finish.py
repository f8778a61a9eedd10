"""The last step of loading, the same for every kind: a private copy on the CPU, and names for what comes out of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from trtship.errors import SourceError, SpecError
from trtship.preprocess import Preprocess
from trtship.progress import Progress
from trtship.session.module_copy import convert, copy_module, set_to_infer
from trtship.session.torch_state import unchanged_state
from trtship.sources.inputs import order_inputs, run_once
from trtship.sources.loaded import LoadedModel
from trtship.sources.outputs import is_flat, left_out, named_tensors, tensors_in_tensors_out
from trtship.spec import DTYPES, TensorSpec

if TYPE_CHECKING:
    import torch


def finish(
    source: str,
    module: torch.nn.Module,
    inputs: tuple[TensorSpec, ...],
    *,
    progress: Progress,
    preprocess: Preprocess | None = None,
    labels: tuple[str, ...] | None = None,
    notes: tuple[str, ...] = (),
    facts: Mapping[str, str] | None = None,
    keywords: tuple[str, ...] | None = None,
) -> LoadedModel:
    """Copy the module, run another copy once, name its outputs, and check that everything said about it fits.

    The module that was given stays as it is: a forward may count its calls, fill a cache or write to its buffers.

    Args:
        source: what the user typed.
        module: the model, as its source made it.
        inputs: what it takes.
        progress: is told the notes.
        preprocess: how pictures become its input.
        labels: one for each class.
        notes: what the source has to say.
        facts: what determines the model, beside its weights.
        keywords: the names to pass `inputs` under; without, forward's own parameter names decide.

    Raises:
        SpecError: inputs, preprocessing or labels do not fit the model.
        SourceError: the module cannot be copied, or its outputs are no tensors that ONNX has.
    """
    collected = [*notes]
    module = _not_compiled(module)
    _check_weights(source, module)
    if keywords is None:
        inputs, keywords, more = order_inputs(module, inputs)
        collected += more
    _check_preprocess(preprocess, inputs)
    module, result, widened = _first_run(module, keywords, inputs)
    collected += widened
    tensors = named_tensors(result)
    _check_outputs(source, result, tensors)
    collected += [f"outputs: {what} is no tensor, and left out" for what in left_out(result)]
    if keywords is not None or not is_flat(result) or widened:
        module = tensors_in_tensors_out(module, keywords, single=bool(widened))
    _check_labels(labels, list(tensors.values()))
    for note in collected:
        progress.note(note)
    return LoadedModel(
        source=source,
        module=module,
        inputs=inputs,
        outputs=_output_names(tensors, {spec.name for spec in inputs}),
        preprocess=preprocess,
        labels=labels,
        notes=tuple(collected),
        facts=facts or {},
    )


def _not_compiled(module: torch.nn.Module) -> torch.nn.Module:
    """The module that `torch.compile` was given: exporters take that one, and it computes the same."""
    import torch

    inner = getattr(module, "_orig_mod", None)
    compiled = isinstance(module, torch._dynamo.eval_frame.OptimizedModule)
    return inner if compiled and isinstance(inner, torch.nn.Module) else module


def _check_weights(source: str, module: torch.nn.Module) -> None:
    """Raises SourceError for lazy modules that have not run, and for parameters on the meta device."""
    import torch

    named = [*module.named_parameters(), *module.named_buffers()]
    empty = [name for name, tensor in named if torch.nn.parameter.is_lazy(tensor) or tensor.is_meta]
    if empty:
        raise SourceError(
            f"{source} has no weights in {empty[0]}",
            why="the tensor has no values yet (a lazy module that has not run, or the meta device)",
            do="run the model once in its factory, or load its weights there",
        )


def _first_run(
    module: torch.nn.Module, keywords: tuple[str, ...] | None, inputs: tuple[TensorSpec, ...]
) -> tuple[torch.nn.Module, object, list[str]]:
    """A private copy that has not run, what another copy returns for zeros, and a note where it had to be widened.

    A module whose parameters are all float16 or bfloat16 is widened to float32: TensorRT builds every precision from a
    float32 graph, and each such number is a float32 number, so that the reference is the same function without the
    rounding between its operations. Where the code insists on its half types, or half and other parameters are mixed
    and the module runs as it is, nothing is converted.
    """
    import torch

    halves = (torch.float16, torch.bfloat16)
    found = {p.dtype for p in module.parameters() if p.is_floating_point() or p.is_complex()}
    half = sorted(str(dtype).removeprefix("torch.") for dtype in found if dtype in halves)
    ways = [False] if not half else [True, False] if found <= set(halves) else [False, True]
    failure: SpecError | None = None
    for widened in ways:
        trial = _private(module, widened=widened)
        runs = tensors_in_tensors_out(trial, keywords, single=True) if widened else trial
        try:
            with unchanged_state(torch):
                result = run_once(runs, None if widened else keywords, inputs)
        except SpecError as error:
            failure = failure or error
            continue
        note = f"model: {' and '.join(half)} parameters are widened to float32, in which the reference computes"
        return _private(module, widened=widened), result, [note] if widened else []
    raise _with_dtypes(failure, found, inputs)


def _private(module: torch.nn.Module, *, widened: bool) -> torch.nn.Module:
    import torch

    copied: torch.nn.Module = set_to_infer(copy_module(module)).to("cpu")
    if widened:
        single = dict.fromkeys((torch.float16, torch.bfloat16), torch.float32) | {torch.complex32: torch.complex64}
        convert(copied, single)
    return copied


def _with_dtypes(failure: SpecError | None, found: set[torch.dtype], inputs: tuple[TensorSpec, ...]) -> SpecError:
    """`failure`, with the remedy where a model of float64 parameters was given float32."""
    import torch

    assert failure is not None
    if torch.float64 not in found or not any(spec.dtype == "float32" for spec in inputs):
        return failure
    return SpecError(
        failure.what,
        why=f"{failure.why}; its parameters are float64 and are not narrowed, since that changes them",
        do="call .float() on the model in its factory and check it there, or declare the input as float64 (:float64)",
    )


def _check_outputs(source: str, result: object, tensors: Mapping[str, torch.Tensor]) -> None:
    if not tensors:
        raise SourceError(
            f"{source} returns no tensor",
            why=f"its forward returns {type(result).__name__}",
            do="return tensors from it",
        )
    for name, tensor in tensors.items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype not in DTYPES:
            raise SourceError(
                f"{source} returns a tensor of {dtype}",
                why=f"{f'its output {name}' if name else 'its output'} would have to be one of {', '.join(DTYPES)}",
                do="return torch.view_as_real of it" if tensor.is_complex() else "convert it in forward",
            )


def _output_names(tensors: Mapping[str, torch.Tensor], taken: set[str]) -> tuple[str, ...]:
    """`logits` for one bare tensor `[B, N]`, `output` for one of another rank, the model's own names else."""
    if list(tensors) == [""]:
        return ("logits" if tensors[""].ndim == 2 else "output",)
    return tuple(f"{name}_out" if name in taken else name for name in tensors)


def _check_preprocess(preprocess: Preprocess | None, inputs: tuple[TensorSpec, ...]) -> None:
    if preprocess is None:
        return
    _, *expected = inputs[0].shape
    if len(expected) != 3 or any(
        isinstance(size, int) and size != got for size, got in zip(expected, preprocess.output_shape, strict=True)
    ):
        raise SpecError(
            f"the preprocessing does not fit the input {inputs[0]}",
            why=f"it makes pictures into {list(preprocess.output_shape)}",
            do="give --input the same size, or change the preprocessing",
        )


def _check_labels(labels: tuple[str, ...] | None, tensors: list[torch.Tensor]) -> None:
    if labels is not None and (tensors[0].ndim != 2 or tensors[0].shape[1] != len(labels)):
        raise SpecError(
            f"{len(labels)} labels do not fit the model",
            why=f"its first output has shape {list(tensors[0].shape)} at batch {tensors[0].shape[0]}",
            do="give one label per class",
        )
