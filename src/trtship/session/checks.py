"""What a caller can get wrong about the inputs of a session, each refused with the specs, and about `out=`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, product
from typing import Any

import numpy as np

from trtship.errors import InputError, OutputError
from trtship.session.arrays import Array, Facts, Kind, kind_of
from trtship.session.call import Call
from trtship.session.split import split_rows
from trtship.spec import ShapeRange, SizeRule, TensorSpec, batch_letter, broken_rule


def refusal(inputs: Sequence[TensorSpec], what: str, why: str) -> InputError:
    specs = "; ".join(str(spec) for spec in inputs)
    return InputError(what, why=why, do=f"the inputs are {specs}")


def checked(
    inputs: Sequence[TensorSpec],
    ranges: Mapping[str, ShapeRange],
    feeds: Mapping[str, Array],
    *,
    letter: str | None,
    rules: Sequence[SizeRule] = (),
) -> Call:
    """What `feeds` are. `letter` is the batch's, where a batch that is too large may be run in parts; each part keeps
    to `rules`. Raises InputError."""
    _check_names(inputs, feeds)
    kind = _kind(inputs, feeds)
    facts = {spec.name: _facts(inputs, spec.name, kind, feeds[spec.name]) for spec in inputs}
    _check_places(inputs, kind, facts)
    for spec in inputs:
        if facts[spec.name].dtype != spec.dtype:
            why = f"it takes {spec.dtype}, and converts nothing by itself"
            raise refusal(inputs, f"{spec.name} is {facts[spec.name].dtype}", why)
    shapes = {name: found.shape for name, found in facts.items()}
    parts = _parts(inputs, ranges, shapes, letter)
    if rules:
        _check_rules(inputs, rules, shapes, parts)
    rows = shapes[inputs[0].name][0] if batch_letter(inputs) else None
    first = facts[inputs[0].name]
    if first.place == "cuda":
        _check_layout(inputs, kind, feeds)
    return Call(
        kind,
        tuple(shapes[spec.name] for spec in inputs),
        place=first.place,
        index=first.device,
        rows=rows,
        parts=parts,
    )


def _facts(inputs: Sequence[TensorSpec], name: str, kind: Kind, array: Array) -> Facts:
    try:
        return kind.facts(array)
    except InputError as error:
        specs = refusal(inputs, "", "").do
        raise InputError(f"{name}: {error.what}", why=error.why, do=f"{error.do}; {specs}") from error


def _check_names(inputs: Sequence[TensorSpec], feeds: Mapping[str, Array]) -> None:
    wanted = {spec.name for spec in inputs}
    faults = [f"missing: {', '.join(sorted(wanted - feeds.keys()))}"] if wanted - feeds.keys() else []
    faults += [f"unknown: {', '.join(sorted(feeds.keys() - wanted))}"] if feeds.keys() - wanted else []
    if faults:
        raise refusal(inputs, "these are not the session's inputs", "; ".join(faults))


def _kind(inputs: Sequence[TensorSpec], feeds: Mapping[str, Array]) -> Kind:
    kinds: dict[str, Kind] = {}
    for name, array in feeds.items():
        kind = kind_of(array)
        if kind is None:
            raise refusal(
                inputs,
                f"{name} is a {type(array).__name__}",
                "it takes numpy arrays, torch tensors, CuPy and JAX arrays, and others that speak DLPack"
                + (": np.asarray() sees the memory of a view" if isinstance(array, memoryview) else ""),
            )
        kinds[name] = kind
    if len(set(kinds.values())) > 1:
        why = ", ".join(f"{name} is {kind.name}" for name, kind in kinds.items())
        raise refusal(inputs, "the inputs are of different kinds, or on different devices", why)
    return next(iter(kinds.values()))


def _check_places(inputs: Sequence[TensorSpec], kind: Kind, facts: Mapping[str, Facts]) -> None:
    places = {(found.place, found.device) for found in facts.values()}
    if len(places) > 1:
        why = ", ".join(f"{name} is {kind.name} on {found.place}:{found.device}" for name, found in facts.items())
        raise refusal(inputs, "the inputs are of different kinds, or on different devices", why)
    place, _ = next(iter(places))
    if place not in ("cpu", "cuda"):
        raise refusal(
            inputs,
            f"the inputs are on {place}, as {kind.name}",
            "moving them would copy through the host: move them yourself to where the session runs",
        )


def _check_layout(inputs: Sequence[TensorSpec], kind: Kind, feeds: Mapping[str, Array]) -> None:
    """Kinds that hold a package's arrays can lay them out anew on the device; others cannot."""
    if not kind.keeps:
        return
    for spec in inputs:
        if not kind.is_contiguous(feeds[spec.name]):
            raise refusal(inputs, f"{spec.name} is not contiguous", "it takes elements in C order, without gaps")


def _parts(
    inputs: Sequence[TensorSpec],
    ranges: Mapping[str, ShapeRange],
    shapes: Mapping[str, tuple[int, ...]],
    letter: str | None,
) -> tuple[int, ...]:
    """The rows of each run; one entry where the whole is run at once."""
    sizes: dict[str, tuple[int, str]] = {}
    parts: tuple[int, ...] | None = None
    for spec in inputs:
        shape = shapes[spec.name]
        what = f"{spec.name} has the shape {list(shape)}"
        if len(shape) != len(spec.shape):
            raise refusal(inputs, what, f"it takes {len(spec.shape)} dimensions")
        for axis, (size, wanted) in enumerate(zip(shape, spec.shape, strict=True)):
            if isinstance(wanted, int):
                if size != wanted:
                    raise refusal(inputs, what, f"dimension {axis} is {size} where it takes {wanted}")
                continue
            first, where = sizes.setdefault(wanted, (size, spec.name))
            if first != size:
                raise refusal(inputs, what, f"{wanted} is {size} here and {first} in {where}")
            if wanted in ranges and size not in ranges[wanted]:
                if wanted == letter and size > ranges[wanted].max:
                    parts = split_rows(size, ranges[wanted])
                if wanted != letter or parts is None:
                    raise refusal(inputs, what, f"{wanted} is {size}, outside {ranges[wanted]}")
    if parts is not None:
        return parts
    first_shape = shapes[inputs[0].name]
    return (first_shape[0] if first_shape else 1,)


def _check_rules(
    inputs: Sequence[TensorSpec],
    rules: Sequence[SizeRule],
    shapes: Mapping[str, tuple[int, ...]],
    parts: Sequence[int],
) -> None:
    sizes = {d: n for s in inputs for d, n in zip(s.shape, shapes[s.name], strict=True) if isinstance(d, str)}
    batch = batch_letter(inputs)
    for rows in dict.fromkeys(parts):
        there = sizes if batch is None else {**sizes, batch: rows}
        rule = broken_rule(rules, there)
        if rule is not None:
            found = ", ".join(f"{letter} is {there[letter]}" for letter in sorted(rule.letters))
            part = f", in a part of the batch of {sizes[batch]}" if batch is not None and len(parts) > 1 else ""
            raise refusal(
                inputs,
                f"these sizes break a rule of the model: {rule.text}",
                f"{found}{part}; elsewhere the model's code goes another way"
                + (f" ({rule.where})" if rule.where else "")
                + ", which is not in the graph",
            )


def out_fault(array: Array, spec: TensorSpec, shape: tuple[int, ...], call: Call) -> str:
    """Why results of this shape cannot be written into an array; empty where they can."""
    kind: Kind | None = kind_of(array)
    if kind is not call.kind:
        return f"it is {kind.name if kind else f'a {type(array).__name__}'}, and the inputs are not"
    try:
        facts = kind.facts(array)
    except InputError as error:
        return f"{error.what}: {error.why}"
    if (facts.place == "cuda") != call.on_gpu or facts.device != call.index:
        return "it is in another place than the inputs"
    if facts.dtype != spec.dtype or facts.shape != shape:
        return f"it is {facts.dtype} {list(facts.shape)}"
    if not kind.is_contiguous(array):
        return "it is not contiguous"
    return "" if kind.is_writable(array) else "it is not to be written to"


def apart(ins: Sequence[np.ndarray[Any, Any]], outs: Sequence[np.ndarray[Any, Any]]) -> None:
    """Raises OutputError where results would be written over what is read, or over each other."""
    if any(np.may_share_memory(one, other) for one, other in (*product(ins, outs), *combinations(outs, 2))):
        raise overlap()


def overlap() -> OutputError:
    return OutputError(
        "out= lies over an input, or over another output",
        why="results would be written over what is still to be read",
        do="pass memory of its own, or leave it out",
    )
