"""A batch that is larger than what is run at once, in parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trtship.spec import ShapeRange, TensorSpec, batch_letter


def split_rows(rows: int, limits: ShapeRange) -> tuple[int, ...] | None:
    """The rows of each part, as few parts as there can be and all but the last of the largest size; where too few rows
    are left over for a part of their own, those before it give some. None where no parts add up."""
    full, left = divmod(rows, limits.max)
    parts = [limits.max] * full
    if left:
        lent = missing = max(0, limits.min - left)
        for place in reversed(range(full)):
            given = min(missing, limits.max - limits.min)
            parts[place] -= given
            missing -= given
        if missing:
            return None
        parts.append(left + lent)
    return tuple(parts)


def splits_by(
    inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], ranges: Mapping[str, ShapeRange]
) -> str | None:
    """The letter of the batch, where a row of the inputs makes a row of every output, as far as shapes tell: it stands
    first and nowhere else. None where a batch cannot be split."""
    letter = batch_letter(inputs)
    if letter is None or letter not in ranges:
        return None
    shapes = [spec.shape for spec in (*inputs, *outputs)]
    if any(letter in shape[1:] for shape in shapes):
        return None
    return letter if all(spec.shape and spec.shape[0] == letter for spec in outputs) else None
