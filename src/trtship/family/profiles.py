"""An optimization profile's shapes, and which of a plan's profiles takes the shapes at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trtship.errors import InputError

Shapes = Mapping[str, tuple[int, ...]]
"""An input's shape, for each input by name."""
Profile = dict[str, tuple[tuple[int, ...], ...]]
"""An input's (min, opt, max) shapes, for each input by name."""


def narrowest(profiles: Sequence[Profile], shapes: Shapes) -> int:
    """The index of the profile that takes these input shapes and leaves the fewest sizes open, the first where several
    do. Raises InputError where none takes them."""
    fitting = [index for index, profile in enumerate(profiles) if fits(profile, shapes)]
    if not fitting:
        said = ", ".join(f"input {name!r} of shape {list(shape)}" for name, shape in shapes.items())
        raise InputError(
            f"{said} does not fit the plan",
            why=f"it takes {' or '.join(_in_words(profile) for profile in profiles)}",
            do="split the batch, or deploy again with a wider --batch",
        )
    return min(fitting, key=lambda index: _open(profiles[index]))


def fits(taken: Profile, shapes: Shapes) -> bool:
    """Whether a profile takes these input shapes."""
    for name, shape in shapes.items():
        low, _, high = taken[name]
        if len(shape) != len(low) or not all(a <= n <= b for a, n, b in zip(low, shape, high, strict=True)):
            return False
    return True


def _open(taken: Profile) -> int:
    """By how much the sizes that it takes differ, over all of them."""
    return sum(b - a for low, _, high in taken.values() for a, b in zip(low, high, strict=True))


def _in_words(taken: Profile) -> str:
    return ", ".join(
        f"{list(low)} to {list(high)}" if low != high else f"{list(low)}" for low, _, high in taken.values()
    )
