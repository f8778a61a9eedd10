"""The last step of loading, the same for every kind: inference on the CPU in float32, names for what comes out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

from trtship.errors import SourceError, SpecError
from trtship.preprocess import Preprocess
from trtship.progress import Progress
from trtship.sources.inputs import order_inputs, run_once
from trtship.sources.loaded import LoadedModel
from trtship.sources.outputs import is_flat, left_out, named_tensors, tensors_in_tensors_out
from trtship.spec import TensorSpec

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
    """Freeze the module, run it once, name its outputs, and check that everything said about it fits.

    `keywords` are the names to pass `inputs` under; without, forward's own parameter names decide. Raises SpecError for
    inputs, preprocessing or labels that do not fit, SourceError for outputs that are no tensors.
    """
    collected = [*notes, *_freeze(module)]
    if keywords is None:
        inputs, keywords, more = order_inputs(module, inputs)
        collected += more
    _check_preprocess(preprocess, inputs)
    result = run_once(module, keywords, inputs)
    tensors = named_tensors(result)
    if not tensors:
        raise SourceError(
            f"{source} returns no tensor",
            why=f"its forward returns {type(result).__name__}",
            do="return tensors from it",
        )
    collected += [f"outputs: {what} is no tensor, and left out" for what in left_out(result)]
    if keywords is not None or not is_flat(result):
        module = tensors_in_tensors_out(module, keywords).eval()
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


def _freeze(module: torch.nn.Module) -> list[str]:
    import torch

    other = Counter(str(p.dtype).removeprefix("torch.") for p in module.parameters() if p.is_floating_point())
    del other["float32"]
    module.eval().requires_grad_(False)
    if not other:
        module.to("cpu")
        return []
    module.to(device="cpu", dtype=torch.float32)
    return [f"model: cast {', '.join(sorted(other))} parameters to float32"]


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
