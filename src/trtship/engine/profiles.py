"""The optimization profiles of a plan: one for all the sizes it takes, and one each for some batch sizes.

TensorRT chooses and fuses kernels for a profile. Where a size is open it leaves out fusions that it makes where it is
known: for TensorRT for RTX 1.6.1 and Swin-T in fp16, the plan for 1:8:32 has 159 layers and that for 32 has 97, since
GELU and biases stay out of the products' kernels. Profiles share the plan's weights, so that another costs little.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from trtship.errors import SpecError
from trtship.family.profiles import Profile
from trtship.spec import ShapeRange, TensorSpec, batch_letter

NONE = "none"


def profiles_of(
    inputs: Sequence[TensorSpec], ranges: Mapping[str, ShapeRange], *, single: Sequence[int] = ()
) -> tuple[Profile, ...]:
    """The profile over all of `ranges`, then one for each batch size in `single`, other sizes as they are.

    Raises SpecError for a letter without a range, and for a size outside the batch's.
    """
    letter = batch_letter(inputs)
    found = [_profile(inputs, ranges)]
    for size in single:
        if letter is None or size not in ranges[letter]:
            raise SpecError(
                f"batch {size} cannot have kernels of its own",
                why=f"the plan takes {ranges[letter]}" if letter else f"the input {inputs[0]} has a fixed batch",
                do="name sizes within --batch, or none",
            )
        found.append(_profile(inputs, {**ranges, letter: ShapeRange(min=size, opt=size, max=size)}))
    return tuple(one for index, one in enumerate(found) if one not in found[:index])


def parse_profiles(text: str | None) -> tuple[int, ...] | None:
    """`"1,8,32"` as numbers, `"none"` as no number, None as it is. Raises SpecError."""
    if text is None:
        return None
    parts = [] if text == NONE else text.split(",")
    if not all(re.fullmatch(r"0*[1-9][0-9]{0,8}", part) for part in parts):
        raise SpecError(
            f"--profiles {text!r} is no list of batch sizes",
            why="it takes whole numbers with commas between them, or none",
            do="for example --profiles 1,8,32",
        )
    return tuple(sorted({int(part) for part in parts}))


def usual_profiles(inputs: Sequence[TensorSpec], ranges: Mapping[str, ShapeRange]) -> tuple[int, ...]:
    """The batch's min, opt and max; none where another size stays open, which would keep the fusions away."""
    letter = batch_letter(inputs)
    if letter is None or {name for spec in inputs for name in spec.letters} != {letter}:
        return ()
    found = ranges[letter]
    return () if found.min == found.max else tuple(sorted({found.min, found.opt, found.max}))


def _profile(inputs: Sequence[TensorSpec], ranges: Mapping[str, ShapeRange]) -> Profile:
    for spec in inputs:
        missing = [letter for letter in spec.letters if letter not in ranges]
        if missing:
            raise SpecError(
                f"no range for the dynamic size {missing[0]} of input {spec}",
                why="TensorRT needs the smallest, the usual and the largest of each dynamic size",
                do=f"add --size {missing[0]}=MIN:OPT:MAX",
            )
    pick = [{letter: getattr(r, which) for letter, r in ranges.items()} for which in ("min", "opt", "max")]
    return {spec.name: tuple(spec.with_sizes(sizes) for sizes in pick) for spec in inputs}
