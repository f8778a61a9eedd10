"""Inputs: which specs a module takes in which order, and arrays of their shapes."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from trtship.errors import SourceError, SpecError
from trtship.spec import TensorSpec

if TYPE_CHECKING:
    import torch

# sizes to try for letters other than B, which nothing bounds: image sides and sequence lengths that models often take
SIZES_TO_TRY = (64, 16, 224)
TRACED_BATCH = 2


def image_spec(name: str, channels: int, height: int, width: int) -> TensorSpec:
    """float32 `[B, C, H, W]`."""
    return TensorSpec(name=name, shape=("B", channels, height, width))


def only_image(specs: tuple[TensorSpec, ...], source: str) -> TensorSpec | None:
    """The one input that `--input` gave for an image model, or None. Raises SpecError where it is no image."""
    if not specs:
        return None
    if len(specs) > 1 or len(specs[0].shape) != 4:
        raise SpecError(
            f"{source} takes one image, not {'; '.join(str(spec) for spec in specs)}",
            why="its input is [B, C, H, W]",
            do="for example --input input=Bx3x224x224",
        )
    return specs[0]


def fixed_sides(spec: TensorSpec | None) -> tuple[int | None, tuple[int, int] | None]:
    """(channels, (height, width)) as far as the spec of an image fixes them."""
    _, channels, height, width = spec.shape if spec else ("B", None, None, None)
    sides = (height, width) if isinstance(height, int) and isinstance(width, int) else None
    return channels if isinstance(channels, int) else None, sides


def forward_parameters(module: torch.nn.Module) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of `module.forward` by name, in their order; those of a TorchScript program that was
    traced, loaded or copied are from its schema, since Python knows no signature of it."""
    try:
        return inspect.signature(module.forward).parameters
    except ValueError:
        schema = getattr(module.forward, "schema", None)
        if schema is None:
            raise
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    found = {}
    for argument in schema.arguments[1:]:  # the first is self
        default = argument.default_value if argument.has_default_value() else inspect.Parameter.empty
        found[argument.name] = inspect.Parameter(argument.name, kind, default=default)
    return found


def order_inputs(
    module: torch.nn.Module, specs: tuple[TensorSpec, ...]
) -> tuple[tuple[TensorSpec, ...], tuple[str, ...] | None, list[str]]:
    """The specs in the order of `module.forward`, the keywords to pass them under, or None for by position, and notes.

    Names that forward knows decide the order; where it knows none of several, their order is taken as given. Raises
    SpecError where it knows some only, or needs a parameter that no spec gives.
    """
    names = [spec.name for spec in specs]
    parameters = forward_parameters(module)
    given = [p for p in parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.POSITIONAL_ONLY, p.KEYWORD_ONLY)]
    known = [p.name for p in given]
    if not set(names) & set(known):
        _check_count(names, parameters, given)
        note = f"inputs {', '.join(names)} are passed by position: forward has no parameters of these names"
        return specs, None, [note] if len(specs) > 1 else []
    unknown = sorted(set(names) - set(known))
    needed = [p.name for p in given if p.default is p.empty and p.name not in names]
    if unknown or needed:
        raise SpecError(
            f"the inputs {', '.join(names)} do not fit the model",
            why=f"forward takes {', '.join(known)}"
            + (f" and has no {', '.join(unknown)}" if unknown else "")
            + (f" and needs {', '.join(needed)}" if needed else ""),
            do="name every input with --input as forward does",
        )
    ordered = tuple(sorted(specs, key=lambda spec: known.index(spec.name)))
    by_position = known[: len(ordered)] == [spec.name for spec in ordered] and all(
        p.kind != p.KEYWORD_ONLY for p in given[: len(ordered)]
    )
    return ordered, None if by_position else tuple(spec.name for spec in ordered), []


def _check_count(names: list[str], parameters: Any, given: list[inspect.Parameter]) -> None:
    positional = [p for p in given if p.kind != p.KEYWORD_ONLY]
    needed = [p for p in given if p.default is p.empty]
    takes_any = any(p.kind == p.VAR_POSITIONAL for p in parameters.values())
    if len(names) < len(needed) or (len(names) > len(positional) and not takes_any):
        raise SpecError(
            f"the model takes {len(needed)} inputs, not {len(names)}",
            why=f"its forward takes {', '.join(p.name for p in given)}",
            do=f"for example {example_inputs([p.name for p in needed])}",
        )


def example_inputs(names: list[str]) -> str:
    """How the user would say these inputs."""
    return " ".join(f"--input {name}=Bx3x224x224" for name in names or ["input"])


def required_names(module: torch.nn.Module) -> list[str]:
    """Names of the parameters that forward needs."""
    parameters = forward_parameters(module).values()
    return [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def zeros_for(specs: tuple[TensorSpec, ...]) -> Iterator[tuple[torch.Tensor, ...]]:
    """Zeros of these shapes at batch 2, once for each size that other letters may take."""
    import torch

    letters = {letter for spec in specs for letter in spec.letters} - {"B"}
    for size in SIZES_TO_TRY if letters else SIZES_TO_TRY[:1]:
        sizes = {"B": TRACED_BATCH, **dict.fromkeys(letters, size)}
        yield tuple(torch.zeros(spec.with_sizes(sizes), dtype=getattr(torch, spec.dtype)) for spec in specs)


def run_once(module: torch.nn.Module, keywords: tuple[str, ...] | None, specs: tuple[TensorSpec, ...]) -> object:
    """What the module returns for zeros. Raises SpecError when it takes no such inputs."""
    import torch

    failure: Exception | None = None
    for tensors in zeros_for(specs):
        try:
            with torch.no_grad():
                return module(*tensors) if keywords is None else module(**dict(zip(keywords, tensors, strict=True)))
        except Exception as error:
            failure = failure or error
    raise SpecError(
        f"the model cannot be run on {'; '.join(str(spec) for spec in specs)}",
        why=one_line(failure),
        do="say what it takes with --input, for example " + example_inputs([spec.name for spec in specs]),
    ) from failure


def one_line(error: BaseException | None) -> str:
    """An exception's type and the first line of its message."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def no_inputs(source: str, names: list[str]) -> SourceError | SpecError:
    """The error for a model whose inputs nobody told."""
    return SpecError(
        f"the inputs of {source} are not known",
        why="the source does not tell their shapes",
        do=f"say them, for example {example_inputs(names)}",
    )
