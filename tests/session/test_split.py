from __future__ import annotations

import pytest

from trtship.session.split import split_rows, splits_by
from trtship.spec import ShapeRange, TensorSpec


@pytest.mark.parametrize(
    ("rows", "limits", "parts"),
    [
        (33, (1, 8, 32), (32, 1)),
        (64, (1, 8, 32), (32, 32)),
        (70, (1, 8, 32), (32, 32, 6)),
        (5, (2, 3, 4), (3, 2)),
        (9, (2, 3, 4), (4, 3, 2)),
        (9, (3, 3, 4), (3, 3, 3)),
        (8, (4, 4, 4), (4, 4)),
        (9, (4, 4, 4), None),
        (5, (3, 4, 4), None),
        (7, (3, 4, 4), (4, 3)),
        (1, (2, 3, 4), None),
    ],
)
def test_parts_add_up_and_fit(rows: int, limits: tuple[int, int, int], parts: tuple[int, ...] | None) -> None:
    low, opt, high = limits
    assert split_rows(rows, ShapeRange(min=low, opt=opt, max=high)) == parts


def test_every_batch_that_can_be_split_is() -> None:
    for low in range(1, 6):
        for high in range(low, 8):
            limits = ShapeRange(min=low, opt=low, max=high)
            for rows in range(high + 1, 40):
                parts = split_rows(rows, limits)
                possible = any(low * count <= rows <= high * count for count in range(1, rows + 1))
                if parts is None:
                    assert not possible
                else:
                    assert sum(parts) == rows
                    assert all(part in limits for part in parts)


def spec(name: str, *shape: int | str) -> TensorSpec:
    return TensorSpec(name=name, shape=shape)


RANGES = {"B": ShapeRange(min=1, opt=2, max=4), "L": ShapeRange(min=1, opt=2, max=4)}


@pytest.mark.parametrize(
    ("inputs", "outputs", "letter"),
    [
        ((spec("x", "B", 3),), (spec("y", "B", 2),), "B"),
        ((spec("x", "B", 3), spec("k", 5)), (spec("y", "B", 2), spec("z", "B")), "B"),
        ((spec("x", "B", 3),), (spec("y", 2, 2),), None),  # an output that is of all rows together
        ((spec("x", "B", "B"),), (spec("y", "B"),), None),
        ((spec("x", "B", 3),), (spec("y", "B", "B"),), None),  # every row against every other
        ((spec("x", 4, 3),), (spec("y", 4),), None),
        ((spec("x", "N", 3),), (spec("y", "N"),), None),  # no range
    ],
)
def test_only_where_rows_make_rows(
    inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], letter: str | None
) -> None:
    assert splits_by(inputs, outputs, RANGES) == letter
