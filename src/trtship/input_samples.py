"""Real inputs that a user supplies, as arrays: checked against the model's inputs, grouped by shape."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, Protocol

import msgspec
import numpy as np

from trtship.errors import InputError
from trtship.preprocess import Preprocess
from trtship.spec import ShapeRange, TensorSpec, batch_letter

MAX_ROWS = 256
"""Rows that are used of one file, or of arrays: more are spread over it. As many as a calibration makes use of."""
MAX_BYTES = 2**30
"""Bytes that the rows of one file, or the items of an iterator, may take in memory."""
MAX_ITEMS = 1024
"""Items that are taken of an iterator, which may be without end."""

Array = Any
"""A numpy array."""


class Samples(msgspec.Struct, frozen=True):
    """Rows of real inputs.

    `groups` holds arrays [rows, ...] by input name. All arrays of one group have equally many rows and the same dynamic
    sizes; the sizes may differ between groups. An input whose first dimension is not the batch is whole in each group.
    `origin` names the files for people, `digest` is the SHA-256 of what was read.
    """

    groups: tuple[dict[str, np.ndarray], ...]
    origin: str
    digest: str

    @property
    def rows(self) -> int:
        """The number of rows in all groups."""
        return sum(len(next(iter(group.values()))) for group in self.groups)


class SampleSource(Protocol):
    """Where real inputs come from: files, or arrays in memory."""

    @property
    def origin(self) -> str:
        """The source's name for people."""

    def digest(self) -> str:
        """Return the SHA-256 of the content. Raises InputError where it cannot be read."""

    def read(
        self,
        inputs: Sequence[TensorSpec],
        *,
        ranges: Mapping[str, ShapeRange],
        preprocess: Preprocess | None = None,
    ) -> Samples:
        """Return the rows, checked against the model's inputs. Raises InputError, ImageError."""


class ArraySource:
    """Arrays that were handed over in Python.

    Args:
        given: A dict of arrays by input name, [rows, ...] each; an array, for a model of one input; or a list or an
            iterator of these, of which at most `MAX_ITEMS`, and `MAX_BYTES`, are taken. A tuple holds one array for
            each input, in their order.
            Tensors of PyTorch are taken as arrays.

    Raises:
        InputError: `given` is none of these, is empty, or holds what numpy cannot take.
    """

    def __init__(self, given: Any) -> None:
        one = isinstance(given, Mapping) or (isinstance(given, tuple) and given) or _is_array(given)
        if isinstance(given, bytes | str) or (not one and not isinstance(given, Iterable)):
            raise _no_inputs(given)
        self._items: list[dict[str, Array] | tuple[Array, ...]] = []
        left = MAX_BYTES
        for item in [given] if one else islice(given, MAX_ITEMS):
            plain = self._plain(item)
            self._items.append(plain)
            left -= sum(array.nbytes for array in (plain.values() if isinstance(plain, dict) else plain))
            if left <= 0:
                break
        if not self._items:
            raise InputError("the inputs are empty", why="there is no array in them", do="give at least one row")
        self.origin = "the arrays given"

    @staticmethod
    def _plain(item: Any) -> dict[str, Array] | tuple[Array, ...]:
        """Copies, since an iterator may fill the same memory again."""
        if isinstance(item, Mapping):
            return {str(name): _as_array(value, str(name)) for name, value in item.items()}
        if isinstance(item, tuple):
            return tuple(_as_array(value, f"input {place}") for place, value in enumerate(item))
        return (_as_array(item, "the input"),)

    def digest(self) -> str:
        whole = hashlib.sha256()
        for item in self._items:
            pairs = item.items() if isinstance(item, dict) else enumerate(item)
            for name, array in pairs:
                whole.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
                whole.update(np.ascontiguousarray(array).tobytes())
        return whole.hexdigest()

    def read(
        self,
        inputs: Sequence[TensorSpec],
        *,
        ranges: Mapping[str, ShapeRange],
        preprocess: Preprocess | None = None,
    ) -> Samples:
        named = []
        for item in self._items:
            if isinstance(item, tuple):
                if len(item) != len(inputs):
                    raise InputError(
                        f"the model takes {len(inputs)} inputs, and arrays without names were given for {len(item)}",
                        why=f"the inputs are {', '.join(map(str, inputs))}",
                        do="give a dict: the name of each input and its array",
                    )
                item = {spec.name: array for spec, array in zip(inputs, item, strict=True)}
            check_arrays(item, inputs, ranges=ranges, where=self.origin)
            named.append(item)
        total = sum(rows_of(item, inputs) for item in named)
        groups = some_rows(merged(named, inputs), inputs)
        used = sum(rows_of(group, inputs) for group in groups)
        return Samples(tuple(groups), told(used, total, self.origin), self.digest())


def told(used: int, total: int, name: str) -> str:
    """Return `8 rows of val.npz`, or `256 of 1000 rows of val.npz`."""
    few = f"{used} row{'' if used == 1 else 's'}" if used == total else f"{used} of {total} rows"
    return f"{few} of {name}"


def check_arrays(
    arrays: Mapping[str, Array],
    inputs: Sequence[TensorSpec],
    *,
    ranges: Mapping[str, ShapeRange],
    where: str,
) -> None:
    """Raise InputError unless `arrays` are rows of the model's inputs: names, dtypes, shapes, and finite numbers.

    `where` is the file that they are from, for the message.
    """
    check_names(arrays, inputs, where=where)
    sizes: dict[str, tuple[int, str]] = {}
    rows: dict[str, int] = {}
    batch = batch_letter(inputs)
    for spec in inputs:
        array = arrays[spec.name]
        check_form(spec, array.dtype, array.shape, ranges=ranges, batch=batch, where=where, sizes=sizes)
        if spec.shape and (batch is None or spec.shape[0] == batch):
            rows[spec.name] = len(array)
        check_finite(spec, array, where=where)
    if len(set(rows.values())) > 1:
        raise unequal_rows(rows, where=where)


def unequal_rows(rows: Mapping[str, int], *, where: str) -> InputError:
    """Return the error for inputs of one file that have different numbers of rows."""
    return InputError(
        f"{where}: the inputs have different numbers of rows",
        why=", ".join(f"{name} has {count}" for name, count in rows.items()),
        do="give as many rows for each input",
    )


def check_names(names: Iterable[str], inputs: Sequence[TensorSpec], *, where: str) -> None:
    """Raise InputError unless `names` are those of the model's inputs."""
    found, wanted = set(names), {spec.name for spec in inputs}
    if found == wanted:
        return
    lacks, more = sorted(wanted - found), sorted(found - wanted)
    why = [f"it has no {', '.join(lacks)}"] if lacks else []
    why += [f"the model has no input {', '.join(more[:5])}"] if more else []
    raise InputError(
        f"{where} does not fit the model's inputs",
        why="; ".join(why),
        do=f"name the arrays as the inputs are: {', '.join(map(str, inputs))}",
    )


def check_form(
    spec: TensorSpec,
    dtype: Any,
    shape: tuple[int, ...],
    *,
    ranges: Mapping[str, ShapeRange],
    batch: str | None,
    where: str,
    sizes: dict[str, tuple[int, str]],
) -> None:
    """Raise InputError unless an array of this dtype and shape is rows of `spec`.

    `sizes` collects what each dynamic size is, and in which input: they agree among the inputs of one file.
    """
    if dtype != np.dtype(spec.dtype):
        raise InputError(
            f"{where}: {spec.name} is {dtype}, and the model takes {spec.dtype}",
            why="inputs are taken as they are, and not converted",
            do=f'save it as {spec.dtype}: array.astype("{spec.dtype}")',
        )
    what = f"{where}: {spec.name} has the shape {list(shape)}"
    if len(shape) != len(spec.shape):
        has_rows = bool(spec.shape) and len(shape) == len(spec.shape) - 1
        raise InputError(
            f"{what}, and the model takes {spec}",
            why=f"it has {len(shape)} dimensions where the input has {len(spec.shape)}",
            do="add the dimension of rows: array[None]" if has_rows else "give rows of the input's own shape",
        )
    for axis, (size, wanted) in enumerate(zip(shape, spec.shape, strict=True)):
        is_rows = axis == 0 and (batch is None or wanted == batch)
        if is_rows:
            _check_rows(size, wanted, what)
        elif isinstance(wanted, int):
            if size != wanted:
                raise InputError(
                    f"{what}, and the model takes {spec}",
                    why=f"dimension {axis} is {size} where it takes {wanted}",
                    do="give rows of the input's own shape",
                )
        else:
            first, other = sizes.setdefault(wanted, (size, spec.name))
            if first != size:
                raise InputError(
                    what,
                    why=f"{wanted} is {size} here and {first} in {other}",
                    do="a letter stands for one size: put rows of other sizes into a file of their own",
                )
            if wanted in ranges and size not in ranges[wanted]:
                raise InputError(
                    what,
                    why=f"{wanted} is {size}, outside the range {ranges[wanted]}",
                    do=f"widen it with --size {wanted}=MIN:OPT:MAX, or leave these rows out",
                )


def _check_rows(size: int, wanted: int | str, what: str) -> None:
    if size < 1:
        raise InputError(what, why="it has no rows", do="give at least one row")
    if isinstance(wanted, int) and size % wanted:
        raise InputError(
            what,
            why=f"the model takes batches of {wanted}, and {size} rows are not a multiple of it",
            do="give as many rows as whole batches have",
        )


def check_finite(spec: TensorSpec, array: Array, *, where: str, rows: Array = None) -> None:
    """Raise InputError for NaN or Inf, with the row that has it. `rows` are the numbers of the rows in the file."""
    if array.dtype.kind != "f" or not array.size:
        return
    fine = np.isfinite(array.reshape(len(array) if array.ndim else 1, -1)).all(axis=1)
    if not fine.all():
        bad = int(np.argmin(fine))
        raise InputError(
            f"{where}: {spec.name} has NaN or Inf in row {bad if rows is None else int(rows[bad])}",
            why="what a model makes of these cannot be compared",
            do="leave the row out, or repair it",
        )


def rows_of(group: Mapping[str, Array], inputs: Sequence[TensorSpec]) -> int:
    """Return the number of rows of a group: those of its first input that has a batch."""
    batch = batch_letter(inputs)
    for spec in inputs:
        if spec.shape and (batch is None or spec.shape[0] == batch):
            return len(group[spec.name])
    return 1


def merged(groups: Iterable[Mapping[str, Array]], inputs: Sequence[TensorSpec]) -> list[dict[str, Array]]:
    """Return the groups, those whose rows have equal shapes as one."""
    batch = batch_letter(inputs)
    alike: dict[Any, list[Mapping[str, Array]]] = {}
    for place, group in enumerate(groups):
        fixed = [s for s in inputs if batch is not None and (not s.shape or s.shape[0] != batch)]
        key: tuple[Any, ...] = tuple(group[spec.name].shape[1:] for spec in inputs)
        alike.setdefault((key, place) if fixed else key, []).append(group)
    return [
        dict(some[0]) if len(some) == 1 else {s.name: np.concatenate([g[s.name] for g in some]) for s in inputs}
        for some in alike.values()
    ]


def some_rows(groups: Sequence[Mapping[str, Array]], inputs: Sequence[TensorSpec]) -> list[dict[str, Array]]:
    """Return at most `MAX_ROWS` rows in all, and at least one of each group, spread over each."""
    counts = [rows_of(group, inputs) for group in groups]
    total, batch = sum(counts), batch_letter(inputs)
    found = []
    for group, count in zip(groups, counts, strict=True):
        share = count if total <= MAX_ROWS else max(1, count * MAX_ROWS // total)
        chosen = chosen_rows(count, share, inputs)
        found.append(
            {
                s.name: np.ascontiguousarray(group[s.name][chosen])
                if s.shape and (batch is None or s.shape[0] == batch)
                else np.ascontiguousarray(group[s.name])
                for s in inputs
            }
        )
    return found


def chosen_rows(count: int, most: int, inputs: Sequence[TensorSpec]) -> Array:
    """Return `most` of `count` row numbers, spread over them; of a fixed batch, whole batches."""
    first = inputs[0].shape[0] if inputs[0].shape else 1
    size = first if isinstance(first, int) and batch_letter(inputs) is None else 1
    batches = count // size
    some = np.unique(np.linspace(0, batches - 1, min(batches, max(1, most // size))).round().astype(int))
    return (some[:, None] * size + np.arange(size)).reshape(-1)


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) or (hasattr(value, "shape") and hasattr(value, "dtype"))


def _as_array(value: Any, name: str) -> Array:
    try:
        tensor = value.detach().cpu().resolve_conj().resolve_neg() if hasattr(value, "detach") else value
        array = np.array(tensor) if _is_array(tensor) else None
    except (TypeError, RuntimeError) as error:  # bfloat16, sparse tensors, tensors without data
        raise InputError(
            f"{name} cannot be taken as a numpy array",
            why=str(error).splitlines()[0] if str(error) else type(error).__name__,
            do="give a dense array of a dtype that numpy has, such as tensor.float()",
        ) from error
    if array is None or array.dtype.kind not in "biuf":
        raise InputError(
            f"{name} is no array of numbers",
            why=f"it is a {type(value).__name__}" if array is None else f"its dtype is {array.dtype}",
            do="give numpy arrays, or tensors of PyTorch",
        )
    return array


def _no_inputs(given: Any) -> InputError:
    return InputError(
        f"inputs of type {type(given).__name__} cannot be used",
        why="inputs are paths of files, a dict of arrays, an array, or a list or an iterator of these",
        do="give, for example, {'ids': array}",
    )
