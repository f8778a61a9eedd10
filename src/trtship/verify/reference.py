"""The reference: a few inputs and what eager PyTorch makes of them, small enough to travel in the bundle.

With them, any machine can check a plan at any batch size, without PyTorch. They are `.npy` files, read without pickle.
A model with dynamic sizes beside the batch has rows at the usual sizes, and a few rows at each of the other sizes that
are checked (`Reference.others`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from trtship.errors import BundleError, SpecError, TrtshipError
from trtship.input_files import Samples
from trtship.input_values import InputDomain, random_inputs
from trtship.preprocess import Preprocess
from trtship.session.base import Session
from trtship.spec import Record, ShapeRange, TensorSpec, batch_letter, to_json
from trtship.verify.edges import FOLDER, NAMES_FILE, Edges, make_edges
from trtship.verify.sizes import Allowed, Sizes, any_size, elements, further_sizes, in_words

ROWS = 9
"""Odd, so that repeating the rows to fill a batch puts different rows at the same place of different tiles."""
ROWS_ELSEWHERE = 3
"""Rows at each of the other sizes: a first, a middle and a last one. Fewer where `BUDGET` has no room."""
BUDGET = 64 * 2**20
"""Bytes of the rows at all other sizes together, as long as there is more than one row at each."""
MOST = 256 * 2**20
"""Bytes of the rows at all other sizes together where there is one at each, then without outputs in float64. The first
of them, the largest sizes, has one row whatever it takes."""
EDGES_ELSEWHERE = ("extremes", "max", "min")
"""Edge rows at the largest and at the smallest sizes; as many of them as there are rows."""
GIVEN_ROWS = 6
"""Of the user's own rows at the usual sizes, at most: the other rows are invented, so that all differ."""
GIVEN_SIZES = 8
"""Other sizes of the user's own rows that are kept, at most."""
OTHERS_FILE = "sizes.json"
"""Lists the further sets of sizes; the rows of each are in a folder, `at-0`, `at-1` and so on."""


class Untried(Record, frozen=True):
    """A set of sizes that is not in the reference, and why."""

    sizes: dict[str, int]
    reason: str


class _Others(Record, frozen=True):
    """`OTHERS_FILE`: the usual sizes, those of each folder, in order, and those that were left out."""

    usual: dict[str, int] = msgspec.field(default_factory=dict)
    sizes: tuple[dict[str, int], ...] = ()
    untried: tuple[Untried, ...] = ()


class Reference(msgspec.Struct, frozen=True):
    """`inputs` and `outputs` by name, [rows, ...]; `batch` is the letter whose size the rows are, None for a model of
    one fixed shape, whose tensors are then used as they are. `sizes` are the sizes of the other letters. `exact` are
    the outputs that the original gives in float64, `edges` further rows; None where they were not, or could not be,
    recorded. `others` are rows at other sizes, the most telling first, each a reference of its own without others;
    `untried` are sizes that should be among them and are not."""

    batch: str | None
    sizes: dict[str, int]
    inputs: dict[str, Any]
    outputs: dict[str, Any]
    exact: dict[str, Any] | None = None
    edges: Edges | None = None
    others: tuple[Reference, ...] = ()
    untried: tuple[Untried, ...] = ()

    @property
    def cases(self) -> tuple[Reference, ...]:
        """This one without its others, and the others."""
        return (msgspec.structs.replace(self, others=(), untried=()), *self.others)

    def in_fp64(self) -> Reference:
        """Return this with the outputs in float64 in the place of the original's, at all sizes that have them."""
        others = tuple(other.in_fp64() for other in self.others if other.exact is not None)
        return msgspec.structs.replace(self, outputs=self.exact or self.outputs, others=others)

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
        """Write one `.npy` file a tensor, numbered: `input-0.npy`, `output-0.npy`, `exact-0.npy`; the edges, and
        each of the others, in a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        for kind, arrays in (("input", self.inputs), ("output", self.outputs), ("exact", self.exact or {})):
            for index, array in enumerate(arrays.values()):
                np.save(folder / f"{kind}-{index}.npy", array, allow_pickle=False)
        if self.edges is not None:
            self.edges.save(folder / FOLDER)
        for index, other in enumerate(self.others):
            other.save(folder / f"at-{index}")
        if self.others or self.untried:
            listed = _Others(usual=self.sizes, sizes=tuple(other.sizes for other in self.others), untried=self.untried)
            (folder / OTHERS_FILE).write_bytes(to_json(listed))

    @staticmethod
    def read(
        file: Callable[[str], bytes],
        *,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        sizes: Mapping[str, int] | None,
        has: Callable[[str], bool] = lambda name: False,
    ) -> Reference:
        """Read what `save` wrote. A bundle of an earlier version has no others.

        Args:
            file: Gives the bytes of each file by its name.
            inputs: The model's inputs.
            outputs: The model's outputs.
            sizes: The usual size of each letter but the batch's; None for those that `save` recorded.
            has: Whether a file is there that not every bundle has.

        Raises:
            BundleError: It is not whole.
        """
        try:
            letters = {name for spec in inputs for name in spec.letters} - {batch_letter(inputs)}
            others, listed = [], _Others()
            if has(OTHERS_FILE):
                listed = msgspec.json.decode(file(OTHERS_FILE), type=_Others)
                for index, other_sizes in enumerate(listed.sizes):
                    if other_sizes.keys() != letters:
                        raise ValueError(f"{OTHERS_FILE} has the sizes {other_sizes}")
                    others.append(_read(file, has, f"at-{index}/", inputs, outputs, other_sizes))
            main = _read(file, has, "", inputs, outputs, listed.usual if sizes is None else sizes)
            return msgspec.structs.replace(main, others=tuple(others), untried=listed.untried)
        except (OSError, ValueError, EOFError, msgspec.MsgspecError) as error:
            raise BundleError(
                "the bundle's reference data cannot be read", why=str(error), do="deploy the model again"
            ) from error


def _read(
    file: Callable[[str], bytes],
    has: Callable[[str], bool],
    folder: str,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    sizes: Mapping[str, int],
) -> Reference:
    """Read the rows in one folder, whose name ends with a slash where it is not empty."""

    def read(kind: str, specs: Sequence[TensorSpec]) -> dict[str, Any]:
        names = [f"{folder}{kind}-{i}.npy" for i in range(len(specs))]
        return {s.name: np.load(BytesIO(file(n)), allow_pickle=False) for s, n in zip(specs, names, strict=True)}

    edges = None
    if has(f"{folder}{FOLDER}/{NAMES_FILE}"):
        edges = Edges.read(lambda name: file(f"{folder}{FOLDER}/{name}"), inputs=inputs, outputs=outputs)
    exact = read("exact", outputs) if has(f"{folder}exact-0.npy") else None
    return Reference(batch_letter(inputs), dict(sizes), read("input", inputs), read("output", outputs), exact, edges)


def make_reference(
    original: Session,
    *,
    sizes: Mapping[str, int],
    ranges: Mapping[str, ShapeRange] | None = None,
    domains: Mapping[str, InputDomain] | None = None,
    samples: Samples | None = None,
    allowed: Allowed = any_size,
    pictures: Any = None,
    preprocess: Preprocess | None = None,
    exact: Session | None = None,
    seed: int = 0,
) -> Reference:
    """Run the original on rows at the usual sizes, on rows at the edges of its values, and on a few at other sizes.

    At the usual sizes there are `ROWS` rows: first those of `samples` with these sizes, at most `GIVEN_ROWS`, spread
    evenly; where there are none, the first half are `pictures`; the rest is drawn from `domains`. At each of the other
    sizes (`trtship.verify.sizes`, and those that `samples` has) there are at most `ROWS_ELSEWHERE`: as many as fit in
    `BUDGET` bytes for all of them together, else one at each until `MOST` bytes are full. Sizes for which there is no
    room, or at which the original itself fails, are listed in `Reference.untried`.

    Args:
        original: The model, with the specs that the rows follow.
        sizes: The usual size of each letter but the batch's.
        ranges: The range of each letter; None for no rows at other sizes.
        domains: What each input may hold, by its name; N(0, 1), or 0 and 1, for those without.
        samples: The user's own rows.
        allowed: The model's own rules on its sizes, the batch's among them. What it refuses is not tried.
        pictures: [n, C, H, W], already preprocessed, for a model whose only input is pictures.
        preprocess: Tells the edges of the values, for such a model.
        exact: The original in float64, where it can be.
        seed: Equal seeds give equal rows.

    Raises:
        SpecError: The rows of `samples` have sizes outside `ranges`, or the original fails at the largest or at the
            smallest sizes.
    """
    made = _Recorder(original, exact, dict(ranges or {}), domains, allowed, preprocess, seed)
    given = _by_sizes(samples, original.inputs, made.letter)
    made.check_given(given, sizes)
    own = given.pop(_key(sizes), None)
    feeds = made.drawn(sizes, ROWS)
    if own is not None:
        _put(feeds, own, GIVEN_ROWS)
    elif pictures is not None and made.letter and len(feeds) == 1:
        _put(feeds, dict.fromkeys(feeds, pictures), ROWS // 2 + 1, spread=False)
    main = made.recorded(sizes, feeds, edges=None, exact=True)
    more = [] if own is None or made.letter else _further_rows(feeds, own)
    return made.with_others(main, given, more)


class _Recorder:
    """Runs the original on rows and keeps what it says."""

    def __init__(
        self,
        original: Session,
        exact: Session | None,
        ranges: dict[str, ShapeRange],
        domains: Mapping[str, InputDomain] | None,
        allowed: Allowed,
        preprocess: Preprocess | None,
        seed: int,
    ) -> None:
        self._original, self._exact, self._ranges, self._domains = original, exact, ranges, domains
        self._allowed, self._preprocess, self._seed = allowed, preprocess, seed
        self.letter = batch_letter(original.inputs)

    def drawn(self, sizes: Sizes, rows: int, *, more: int = 0) -> dict[str, Any]:
        """Return invented rows; those of another `more` are others."""
        full = {**sizes, self.letter: rows} if self.letter else dict(sizes)
        return random_inputs(self._original.inputs, full, seed=self._seed + more, domains=self._domains)

    def recorded(self, sizes: Sizes, feeds: dict[str, Any], *, edges: Sequence[str] | None, exact: bool) -> Reference:
        """Return `feeds` with what the original says of them; `edges` are the names of the edge rows, None for all."""
        outputs = self._infer(self._original, sizes, feeds)
        found = None
        if edges is None or edges:
            found = make_edges(
                self._original,
                feeds,
                dynamic=self.letter is not None,
                preprocess=self._preprocess,
                seed=self._seed,
                domains=self._domains,
                sizes=sizes,
                names=edges,
                infer=lambda rows: self._infer(self._original, sizes, rows),
            )
        doubled = self._exactly(sizes, feeds) if exact else None
        return Reference(self.letter, dict(sizes), feeds, outputs, doubled, found)

    def _infer(self, session: Session, sizes: Sizes, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Run all rows at once, or, where the model's rules do not take so many, in batches of the usual size."""
        count = len(next(iter(feeds.values())))
        if self.letter is None or self.letter not in self._ranges or self._allowed({**sizes, self.letter: count}):
            return dict(session.infer(feeds))
        size, parts = self._ranges[self.letter].opt, []
        for begin in range(0, count, size):
            order = np.arange(begin, begin + size) % count
            found = session.infer({name: np.ascontiguousarray(array[order]) for name, array in feeds.items()})
            parts.append({name: array[: count - begin] for name, array in found.items()})
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _exactly(self, sizes: Sizes, feeds: Mapping[str, Any]) -> dict[str, Any] | None:
        """In float64; None for a model that cannot, since its own code says float32 somewhere."""
        if self._exact is None:
            return None
        try:
            return self._infer(self._exact, sizes, feeds)
        except (RuntimeError, TrtshipError):
            return None

    def check_given(self, given: Mapping[_Key, dict[str, Any]], usual: Sizes) -> None:
        """Raise SpecError for the user's rows where their sizes are not ones that the bundle will take."""
        for key in given:
            sizes = dict(key)
            wrong = [n for n in sizes if n not in usual or (n in self._ranges and sizes[n] not in self._ranges[n])]
            if wrong:
                letter = wrong[0]
                raise SpecError(
                    f"inputs at {in_words(sizes)} cannot be used",
                    why=f"{letter} is {sizes[letter]}, and the model is deployed for {self._ranges.get(letter)}",
                    do=f"widen --size {letter}=MIN:OPT:MAX, or leave these inputs out",
                )
            if not self._allowed_at(sizes):
                raise SpecError(
                    f"inputs at {in_words(sizes)} cannot be used",
                    why="the model's own rules on its sizes refuse them",
                    do="leave these inputs out",
                )

    def _allowed_at(self, sizes: Sizes) -> bool:
        batch = {self.letter: self._ranges[self.letter].opt} if self.letter and self.letter in self._ranges else {}
        return self._allowed({**sizes, **batch})

    def with_others(
        self, main: Reference, given: Mapping[_Key, dict[str, Any]], more: Sequence[dict[str, Any]]
    ) -> Reference:
        """Return `main` with rows at other sizes: those of its ranges, those that the user gave, and `more` at its own.

        The largest sizes come first, then what the user gave, then the rest.
        """
        known = {letter: self._ranges[letter] for letter in main.sizes if letter in self._ranges}
        whole = known.keys() == main.sizes.keys()
        wanted = further_sizes(known, main.sizes, allowed=self._allowed_at) if whole else ()
        keys = [key for key in given if dict(key) not in wanted]
        kept = [keys[i] for i in _spread(len(keys), GIVEN_SIZES)]
        reason = f"of the inputs given, {GIVEN_SIZES} sizes are kept"
        untried = [Untried(sizes=dict(key), reason=reason) for key in keys if key not in kept]
        cases = [*wanted[:1], *map(dict, kept), *wanted[1:]]
        others = [self.recorded(main.sizes, feeds, edges=(), exact=main.exact is not None) for feeds in more]
        main_only = msgspec.structs.replace(main, edges=None)
        count = min(ROWS_ELSEWHERE, int(BUDGET / max(1.0, sum(self._row_bytes(main_only, cases, known)))))
        if not count:
            count, main_only = 1, msgspec.structs.replace(main_only, exact=None)
        left = MOST
        for place, (sizes, row) in enumerate(zip(cases, self._row_bytes(main_only, cases, known), strict=True)):
            feeds = self.drawn(sizes, count, more=place + 1)
            if _key(sizes) in given:
                _put(feeds, given[_key(sizes)], GIVEN_ROWS)
            found: Reference | str = _no_room()
            if not place or row <= left:
                found = self._tried(sizes, feeds, ends=_ends(sizes, known), exact=main_only.exact is not None)
            if isinstance(found, Reference) and place and _bytes(found) > left:
                found = _no_room()
            if isinstance(found, Reference):
                left -= _bytes(found)
                others.append(found)
            else:
                untried.append(Untried(sizes=dict(sizes), reason=found))
        return msgspec.structs.replace(main, others=tuple(others), untried=tuple(untried))

    def _row_bytes(self, main: Reference, cases: Sequence[Sizes], ranges: Mapping[str, ShapeRange]) -> list[float]:
        """Estimate the bytes of one row at each of the sizes, with an edge row at the ends of all ranges: outputs grow
        as the inputs do."""
        weight, found = _bytes(main) / max(1, elements(main.inputs)), []
        for sizes in cases:
            full = {**sizes, self.letter: 1} if self.letter else sizes
            row = sum(float(np.prod(spec.with_sizes(full))) for spec in self._original.inputs)
            found.append(weight * row * (2 if _ends(sizes, ranges) else 1))
        return found

    def _tried(self, sizes: Sizes, feeds: dict[str, Any], *, ends: Sequence[str], exact: bool) -> Reference | str:
        """Return the rows, or why there are none. Raises SpecError where the model fails at an end of all ranges."""
        edges = EDGES_ELSEWHERE[: len(next(iter(feeds.values())))] if ends else ()
        try:
            return self.recorded(sizes, feeds, edges=edges, exact=exact)
        except Exception as error:  # the user's own code may raise anything
            said = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            if ends:
                raise SpecError(
                    f"the model itself fails at {in_words(sizes)}, the {ends[0]} of its sizes",
                    why=said,
                    do="give --size ranges that the model takes",
                ) from error
            return f"the model itself fails there ({said})"


_Key = tuple[tuple[str, int], ...]
"""Sizes, as a key."""


def _key(sizes: Sizes) -> _Key:
    return tuple(sorted(sizes.items()))


def _ends(sizes: Sizes, ranges: Mapping[str, ShapeRange]) -> list[str]:
    """Return `MIN` or `MAX`, or both, where all sizes are at these ends."""
    ends = {"MIN": {n: r.min for n, r in ranges.items()}, "MAX": {n: r.max for n, r in ranges.items()}}
    return [name for name, end in ends.items() if end == dict(sizes)]


def _no_room() -> str:
    return f"rows at all sizes would take more than the {MOST // 2**20} MiB that a bundle has for them"


def _bytes(reference: Reference) -> int:
    edges = reference.edges
    parts = [reference.inputs, reference.outputs, reference.exact or {}]
    parts += [edges.inputs, edges.outputs] if edges is not None else []
    return sum(array.nbytes for part in parts for array in part.values())


def _by_sizes(samples: Samples | None, inputs: Sequence[TensorSpec], letter: str | None) -> dict[_Key, dict[str, Any]]:
    """Return the user's rows by the sizes of the letters but the batch's."""
    found: dict[_Key, list[dict[str, Any]]] = {}
    for group in samples.groups if samples is not None else ():
        sizes = {
            dimension: int(size)
            for spec in inputs
            for dimension, size in list(zip(spec.shape, group[spec.name].shape, strict=True))[1:]
            if isinstance(dimension, str) and dimension != letter
        }
        found.setdefault(_key(sizes), []).append(group)
    return {
        key: {spec.name: np.concatenate([group[spec.name] for group in groups]) for spec in inputs}
        for key, groups in found.items()
    }


def _put(feeds: dict[str, Any], given: Mapping[str, Any], most: int, *, spread: bool = True) -> None:
    """Put at most `most` of the given rows in the place of the first rows."""
    count = min(len(next(iter(given.values()))), most, len(next(iter(feeds.values()))))
    chosen = _spread(len(next(iter(given.values()))), count) if spread else list(range(count))
    for name, array in feeds.items():
        array[:count] = given[name][chosen]


def _spread(count: int, most: int) -> list[int]:
    """Return at most `most` of the first `count` whole numbers, evenly apart."""
    return [int(i) for i in np.linspace(0, count - 1, min(count, most))] if count else []


def _further_rows(feeds: Mapping[str, Any], given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the given rows that one fixed batch has no room for, in batches of that size; at most `GIVEN_ROWS` rows in
    all."""
    size, count = len(next(iter(feeds.values()))), len(next(iter(given.values())))
    order = _spread(count, GIVEN_ROWS)[size:] if count > size else []
    found = []
    for begin in range(0, len(order), size):
        chosen = [order[(begin + i) % len(order)] for i in range(size)]
        found.append({name: np.ascontiguousarray(array[chosen]) for name, array in given.items()})
    return found
