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
from trtship.input_files import Samples
from trtship.input_values import InputDomain
from trtship.measure import random_inputs
from trtship.preprocess import Preprocess
from trtship.session.base import Session
from trtship.spec import TensorSpec, batch_letter
from trtship.verify.edges import FOLDER, NAMES_FILE, Edges, make_edges

ROWS = 9
"""Odd, so that repeating the rows to fill a batch puts different rows at the same place of different tiles."""


class Reference(msgspec.Struct, frozen=True):
    """`inputs` and `outputs` by name, [rows, ...]; `batch` is the letter whose size the rows are, None for a model of
    one fixed shape, whose tensors are then used as they are. `sizes` are the sizes of the other letters. `exact` are
    the outputs that the original gives in float64, `edges` further rows; None where they were not, or could not be,
    recorded."""

    batch: str | None
    sizes: dict[str, int]
    inputs: dict[str, Any]
    outputs: dict[str, Any]
    exact: dict[str, Any] | None = None
    edges: Edges | None = None

    @property
    def rows(self) -> int:
        return int(next(iter(self.inputs.values())).shape[0])

    @property
    def rowwise(self) -> bool:
        """Whether a row of the inputs makes a row of the outputs: what a dynamic batch says. Of fixed shapes only
        those of pictures say so, [B, C, H, W], whose outputs have as many rows."""
        if self.batch is not None:
            return True
        arrays = [*self.inputs.values(), *self.outputs.values()]
        pictures = all(array.ndim == 4 for array in self.inputs.values())
        return pictures and len({array.shape[:1] for array in arrays}) == 1

    def at(self, size: int, *, first: int = 0) -> tuple[dict[str, Any], dict[str, Any]]:
        """Inputs and expected outputs for a batch of `size`: the rows from `first` on, round and round in an order that
        shifts each time. A reference of one fixed shape has its own rows alone, from `first` on."""
        n = self.rows
        if self.batch is None and not first:
            return self.inputs, self.outputs
        order = np.array([(first + i + i // n) % n for i in range(n if self.batch is None else size)])
        return (
            {name: np.ascontiguousarray(a[order]) for name, a in self.inputs.items()},
            {name: np.ascontiguousarray(a[order]) for name, a in self.outputs.items()},
        )

    def save(self, folder: Path) -> None:
        """One `.npy` file a tensor, numbered: `input-0.npy`, `output-0.npy`, `exact-0.npy`; the edges in a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        for kind, arrays in (("input", self.inputs), ("output", self.outputs), ("exact", self.exact or {})):
            for index, array in enumerate(arrays.values()):
                np.save(folder / f"{kind}-{index}.npy", array, allow_pickle=False)
        if self.edges is not None:
            self.edges.save(folder / FOLDER)

    @staticmethod
    def read(
        file: Callable[[str], bytes],
        *,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        sizes: Mapping[str, int],
        has: Callable[[str], bool] = lambda name: False,
    ) -> Reference:
        """What `save` wrote; `file` gives the bytes of each by its name, `has` tells which of those that not every
        bundle has are there. Raises BundleError where it is not whole."""

        def read(kind: str, specs: Sequence[TensorSpec]) -> dict[str, Any]:
            return {s.name: np.load(BytesIO(file(f"{kind}-{i}.npy")), allow_pickle=False) for i, s in enumerate(specs)}

        try:
            edges = None
            if has(f"{FOLDER}/{NAMES_FILE}"):
                edges = Edges.read(lambda name: file(f"{FOLDER}/{name}"), inputs=inputs, outputs=outputs)
            exact = read("exact", outputs) if has("exact-0.npy") else None
            return Reference(
                batch_letter(inputs), dict(sizes), read("input", inputs), read("output", outputs), exact, edges
            )
        except (OSError, ValueError, EOFError) as error:
            raise BundleError(
                "the bundle's reference data cannot be read", why=str(error), do="deploy the model again"
            ) from error


def make_reference(
    original: Session,
    *,
    sizes: Mapping[str, int],
    pictures: Any = None,
    preprocess: Preprocess | None = None,
    exact: Session | None = None,
    domains: Mapping[str, InputDomain] | None = None,
    samples: Samples | None = None,
    seed: int = 0,
) -> Reference:
    """Run the original on `ROWS` random rows; the first half of them replaced by `pictures` ([n, C, H, W], already
    preprocessed) where the only input is pictures; and on rows at the edges of the range that `preprocess` tells, or
    else of those rows. `sizes` has every letter but the batch's. `exact` is the original in float64, where it can be.
    """
    letter = batch_letter(original.inputs)
    full = {**sizes, letter: ROWS} if letter else dict(sizes)
    feeds = random_inputs(original.inputs, full, seed=seed, domains=domains)
    for group in samples.groups if samples is not None else ():
        fits = [group[name].shape[1:] == array.shape[1:] for name, array in feeds.items()]
        if letter and all(fits):
            for name, array in feeds.items():
                array[: len(group[name])] = group[name][: len(array)]
    if pictures is not None and letter and len(feeds) == 1:
        array = next(iter(feeds.values()))
        count = min(len(pictures), ROWS // 2 + 1)
        array[:count] = pictures[:count]
    outputs = original.infer(feeds)
    edges = make_edges(original, feeds, dynamic=letter is not None, preprocess=preprocess, seed=seed)
    return Reference(letter, dict(sizes), feeds, outputs, _exactly(exact, feeds), edges)


def _exactly(session: Session | None, feeds: Mapping[str, Any]) -> dict[str, Any] | None:
    """In float64; None for a model that cannot, since its own code says float32 somewhere."""
    if session is None:
        return None
    try:
        return session.infer(feeds)
    except RuntimeError:
        return None
