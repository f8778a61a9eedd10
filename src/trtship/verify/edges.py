"""Inputs at the edges of the data's range, where what works on ordinary pictures breaks: a variance of zero, the
largest activations, the sharpest contrast."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from trtship.errors import TrtshipError
from trtship.input_values import InputDomain
from trtship.preprocess import Preprocess, ends_of_pixels
from trtship.session.base import Session
from trtship.spec import TensorSpec

NAMES_FILE = "names.json"
FOLDER = "edges"


class Edges(msgspec.Struct, frozen=True):
    """`names` of the rows; `inputs` and what the original says, `outputs`, by tensor: [rows, ...]. For a model of one
    fixed shape a row is a whole input, and a whole output."""

    names: tuple[str, ...]
    inputs: dict[str, Any]
    outputs: dict[str, Any]

    @property
    def finite(self) -> tuple[bool, ...]:
        """Whether the original says a number of each row, and not NaN or Inf."""
        count = len(self.names)
        fine = [np.isfinite(np.asarray(a, np.float64)).reshape(count, -1).all(1) for a in self.outputs.values()]
        return tuple(bool(v) for v in np.all(fine, axis=0))

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / NAMES_FILE).write_text(json.dumps(self.names) + "\n")
        for kind, arrays in (("input", self.inputs), ("output", self.outputs)):
            for index, array in enumerate(arrays.values()):
                np.save(folder / f"{kind}-{index}.npy", array, allow_pickle=False)

    @staticmethod
    def read(file: Callable[[str], bytes], *, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> Edges:
        """What `save` wrote; `file` gives the bytes of each by its name. Raises OSError, ValueError."""
        found = [
            {s.name: np.load(BytesIO(file(f"{kind}-{i}.npy")), allow_pickle=False) for i, s in enumerate(specs)}
            for kind, specs in (("input", inputs), ("output", outputs))
        ]
        return Edges(tuple(map(str, json.loads(file(NAMES_FILE)))), *found)


def make_edges(
    original: Session,
    rows: Mapping[str, Any],
    *,
    dynamic: bool,
    preprocess: Preprocess | None = None,
    seed: int = 0,
    domains: Mapping[str, InputDomain] | None = None,
    sizes: Mapping[str, int] | None = None,
    names: Sequence[str] | None = None,
    infer: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
) -> Edges | None:
    """Return the rows of `edge_rows`, and what the original says of them; None where it refuses them.

    Args:
        original: The model.
        rows: The reference's inputs.
        dynamic: Whether the batch is.
        preprocess: As in `edge_rows`, and so `seed`, `domains` and `sizes`.
        names: The rows to keep; None for all.
        infer: Runs the original on several rows, where that is not simply `original.infer`.
    """
    found, made = edge_rows(original.inputs, rows, preprocess=preprocess, seed=seed, domains=domains, sizes=sizes)
    chosen = [found.index(name) for name in (found if names is None else names)]
    names, made = tuple(found[i] for i in chosen), {name: array[chosen] for name, array in made.items()}
    try:
        if dynamic:
            return Edges(names, made, dict((infer or original.infer)(made)))
        whole = {name: np.repeat(a[:, None], len(rows[name]), axis=1) for name, a in made.items()}
        each = [original.infer({name: a[i] for name, a in whole.items()}) for i in range(len(names))]
    except TrtshipError:
        return None
    return Edges(names, whole, {spec.name: np.stack([one[spec.name] for one in each]) for spec in original.outputs})


def edge_rows(
    inputs: Sequence[TensorSpec],
    rows: Mapping[str, Any],
    *,
    preprocess: Preprocess | None,
    seed: int = 0,
    domains: Mapping[str, InputDomain] | None = None,
    sizes: Mapping[str, int] | None = None,
) -> tuple[tuple[str, ...], dict[str, Any]]:
    """One input of each kind for every tensor, [kinds, ...]:

    `min`, `max`, `middle`, `zero` (or what is nearest to 0): constant, for pictures in each channel; `hot_pixel`: the
    least everywhere but at one element (for pictures: one pixel); `stripes`: the least and the largest in turn along
    the last axis; `extremes`: each element the least or the largest, by chance.

    The range is what `preprocess` can give for the one input of pictures; else that of `rows`, widened to what the
    input's domain allows at `sizes`, where it has one.
    """
    kinds: dict[str, list[Any]] = {}
    rng = np.random.default_rng(seed)
    for spec in inputs:
        array = rows[spec.name]
        low, high = _range(array, preprocess if len(inputs) == 1 else None)
        domain = (domains or {}).get(spec.name)
        if domain is not None and not low.ndim:
            least, largest = domain.bounds(sizes or {})
            low, high = np.minimum(low, least), np.maximum(high, largest)
        shape = array.shape[1:]
        hot = np.zeros(shape, bool)
        if len(shape) == 3:
            hot[:, shape[1] // 2, shape[2] // 2] = True
        else:
            hot.reshape(-1)[hot.size // 2 : hot.size // 2 + 1] = True
        stripes = np.broadcast_to(np.arange(shape[-1]) % 2 == 1 if shape else False, shape)
        made = {
            "min": np.broadcast_to(low, shape),
            "max": np.broadcast_to(high, shape),
            "middle": np.broadcast_to((low + high) / 2, shape),
            "zero": np.broadcast_to(np.clip(0, low, high), shape),
            "hot_pixel": np.where(hot, high, low),
            "stripes": np.where(stripes, high, low),
            "extremes": np.where(rng.random(shape) < 0.5, high, low),
        }
        for name, value in made.items():
            kinds.setdefault(name, []).append(value.astype(array.dtype))
    stacked = [np.stack([kinds[name][i] for name in kinds]) for i in range(len(inputs))]
    return tuple(kinds), {spec.name: array for spec, array in zip(inputs, stacked, strict=True)}


def _range(array: Any, preprocess: Preprocess | None) -> tuple[Any, Any]:
    """The least and the largest value, for pictures [C, 1, 1], else one each."""
    if preprocess is None or array.ndim != 4 or array.dtype.kind != "f":
        return np.asarray(array.min()), np.asarray(array.max())
    low, high = ends_of_pixels(preprocess)[:, :, None, None]
    return low, high
