"""The reference: a few inputs and what eager PyTorch makes of them, small enough to travel in the bundle.

With them, any machine can check a plan at any batch size, without PyTorch. They are `.npy` files, read without pickle.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from trtship.errors import BundleError
from trtship.measure import random_inputs
from trtship.session.base import Session
from trtship.spec import TensorSpec, batch_letter

ROWS = 9
"""Odd, so that repeating the rows to fill a batch puts different rows at the same place of different tiles."""


class Reference(msgspec.Struct, frozen=True):
    """`inputs` and `outputs` by name, [rows, ...]; `batch` is the letter whose size the rows are, None for a model of
    one fixed shape, whose tensors are then used as they are. `sizes` are the sizes of the other letters."""

    batch: str | None
    sizes: dict[str, int]
    inputs: dict[str, Any]
    outputs: dict[str, Any]

    @property
    def rows(self) -> int:
        return int(next(iter(self.inputs.values())).shape[0])

    def at(self, size: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Inputs and expected outputs for a batch of `size`: the rows, repeated in an order that shifts each time."""
        if self.batch is None:
            return self.inputs, self.outputs
        n = self.rows
        order = np.array([(i + i // n) % n for i in range(size)])
        return (
            {name: np.ascontiguousarray(a[order]) for name, a in self.inputs.items()},
            {name: np.ascontiguousarray(a[order]) for name, a in self.outputs.items()},
        )

    def save(self, folder: Path) -> tuple[Path, ...]:
        """One `.npy` file a tensor, numbered: `input-0.npy`, `output-0.npy`."""
        folder.mkdir(parents=True, exist_ok=True)
        written = []
        for kind, arrays in (("input", self.inputs), ("output", self.outputs)):
            for index, array in enumerate(arrays.values()):
                path = folder / f"{kind}-{index}.npy"
                np.save(path, array, allow_pickle=False)
                written.append(path)
        return tuple(written)

    @staticmethod
    def read(
        file: Callable[[str], bytes],
        *,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        sizes: Mapping[str, int],
    ) -> Reference:
        """What `save` wrote; `file` gives the bytes of each by its name. Raises BundleError where it is not whole."""
        try:
            found = [
                {s.name: np.load(BytesIO(file(f"{kind}-{i}.npy")), allow_pickle=False) for i, s in enumerate(specs)}
                for kind, specs in (("input", inputs), ("output", outputs))
            ]
            return Reference(batch_letter(inputs), dict(sizes), *found)
        except (OSError, ValueError, EOFError) as error:
            raise BundleError(
                "the bundle's reference data cannot be read", why=str(error), do="deploy the model again"
            ) from error


def make_reference(
    original: Session,
    *,
    sizes: Mapping[str, int],
    pictures: Any = None,
    seed: int = 0,
) -> Reference:
    """Run the original on `ROWS` random rows; the first half of them replaced by `pictures` ([n, C, H, W], already
    preprocessed) where the only input is pictures. `sizes` has every letter but the batch's."""
    letter = batch_letter(original.inputs)
    full = {**sizes, letter: ROWS} if letter else dict(sizes)
    feeds = random_inputs(original.inputs, full, seed=seed)
    if pictures is not None and letter and len(feeds) == 1:
        array = next(iter(feeds.values()))
        count = min(len(pictures), ROWS // 2 + 1)
        array[:count] = pictures[:count]
    return Reference(letter, dict(sizes), feeds, original.infer(feeds))
