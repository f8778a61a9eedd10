"""The range of every dynamic size."""

from __future__ import annotations

from collections.abc import Mapping

from trtship.deployment.options import DeployOptions
from trtship.engine.profiles import profiles_of, usual_profiles
from trtship.errors import SpecError
from trtship.spec import DEFAULT_BATCH, ShapeRange, TensorSpec, batch_letter


def ranges_of(options: DeployOptions, inputs: tuple[TensorSpec, ...]) -> dict[str, ShapeRange]:
    """Return a range for every letter.

    Raises:
        SpecError: A range is missing, `--batch` does not fit a fixed batch, an input has no batch beside one that has
            it, or `--profiles` has a batch that the plan does not take.
    """
    letter, batch = batch_letter(inputs), options.batch
    if letter is None and batch is not None and tuple(map(str, inputs[0].shape[:1])) != (str(batch),):
        raise SpecError(
            f"--batch {batch} does not fit the model",
            why=f"its input {inputs[0]} has a fixed batch",
            do="leave --batch away, or make the model's batch dynamic",
        )
    if letter in options.sizes:
        raise SpecError(f"--size {letter}: that is the batch", why=f"as in {inputs[0]}", do="use --batch for it")
    _check_rows(inputs, letter)
    given = {**options.sizes, **({letter: batch or DEFAULT_BATCH} if letter else {})}
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
    found = {name: given[name] for name in sorted(wanted)}
    profiles_of(inputs, found, single=options.profiles or ())
    return found


def _check_rows(inputs: tuple[TensorSpec, ...], letter: str | None) -> None:
    """Raise SpecError for an input without the batch beside one that has it: the checks go row by row."""
    for spec in inputs:
        if letter is not None and (not spec.shape or spec.shape[0] != letter):
            raise SpecError(
                f"the input {spec.name} has no batch",
                why=f"it is {spec}, and the batch is {letter}, as in {inputs[0]}: models are checked row by row",
                do=f"make {letter} its first dimension, or give every input a fixed shape with --input",
            )


def profiles_in(
    options: DeployOptions, inputs: tuple[TensorSpec, ...], ranges: Mapping[str, ShapeRange]
) -> tuple[int, ...]:
    """The batch sizes that get kernels of their own."""
    return usual_profiles(inputs, ranges) if options.profiles is None else options.profiles
