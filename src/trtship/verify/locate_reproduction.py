"""A folder that reproduces a fault: the few nodes around it, what they read, and what should come out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trtship.errors import BundleError, SpecError
from trtship.files import open_regular, read_regular
from trtship.graphs.roundings import FLOATS
from trtship.spec import Precision, Record, from_json, to_json
from trtship.verify.locate import Located, Search
from trtship.verify.locate_compare import Deviation
from trtship.verify.locate_graph import part, typed, written
from trtship.verify.locate_runs import FAILURES, Suspect, run_part

if TYPE_CHECKING:
    import onnx_ir

SUSPECT, REFERENCE, RECORD = "minimal.onnx", "reference.onnx", "reproduction.json"


class Reproduction(Record, frozen=True):
    """`subject` is what has the fault (`graph fp16`, `plan`), `inputs` the `.npy` file of each input of both graphs,
    `reads` those of the suspect's, `found` what came of running them when the folder was written."""

    subject: str
    precision: Precision
    family: str
    tensor: str
    node: str
    inputs: dict[str, str]
    reads: tuple[str, ...]
    found: Deviation | None = None


Opens = Callable[["onnx_ir.Model"], Suspect]
"""How to run a graph as the suspect runs."""


def write_reproduction(
    folder: Path, search: Search, located: Located, opens: Opens, *, subject: str, family: str
) -> Reproduction:
    """Write the graphs and inputs to `folder`: the guilty nodes alone if they show the fault by themselves, else with
    as many of those before them as it takes."""
    reads = list(located.reads)
    while True:
        made = _parts(search, located.tensor, reads)
        if made is not None:
            suspect, reference, feeds = made
            found = run_reproduction(opens(suspect), reference, feeds)
            if found is not None or not any(name in search.lineage.makers for name in reads):
                break
        reads = _further_up(search, reads)
    written(suspect, folder / SUSPECT)
    written(reference, folder / REFERENCE)
    record = Reproduction(
        subject=subject,
        precision=search.suspect.precision,
        family=family,
        tensor=located.tensor,
        node=located.node,
        inputs={name: f"input-{index}.npy" for index, name in enumerate(feeds)},
        reads=tuple(_inputs(suspect)),
        found=found,
    )
    for name, file in record.inputs.items():
        np.save(folder / file, feeds[name], allow_pickle=False)
    (folder / RECORD).write_bytes(to_json(record))
    return record


def read_reproduction(folder: Path) -> tuple[Reproduction, onnx_ir.Model, onnx_ir.Model, dict[str, Any]]:
    """The record, both graphs and the inputs. Raises BundleError, GraphError, SpecError."""
    path = folder / RECORD
    if not path.is_file():
        raise BundleError(
            f"{folder} is no reproduction", why=f"it has no {RECORD}", do="trtship debug BUNDLE -o FOLDER makes one"
        )
    record = from_json(read_regular(path), Reproduction, what=str(path))
    feeds = {name: _array(folder / Path(file).name) for name, file in record.inputs.items()}
    return record, typed(folder / SUSPECT), typed(folder / REFERENCE), feeds


def _array(path: Path) -> Any:
    try:
        with open_regular(path) as file:
            return np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise SpecError(
            f"cannot read the array in {path}", why=str(error), do="trtship debug BUNDLE -o FOLDER writes it anew"
        ) from error


def run_reproduction(suspect: Suspect, reference: onnx_ir.Model, feeds: Mapping[str, Any]) -> Deviation | None:
    """How far the suspect is off; None where it is not."""
    located = Search(suspect, reference, feeds).locate()
    return None if located is None else located.deviation


def _parts(search: Search, target: str, reads: list[str]) -> tuple[onnx_ir.Model, onnx_ir.Model, dict[str, Any]] | None:
    """Both graphs from `reads` to `target`, and their feeds; None where the reference's is not bounded by them."""
    makers = search.lineage.makers
    inner = [name for name in reads if name in makers]
    theirs = {name: search.names.get(name, name) for name in inner}
    try:
        reference = part(search.reference, [*theirs.values(), *_inputs(search.reference)], [search.names[target]])
        suspect = part(search.suspect.model, reads, [target])
        values = _values(search, inner)
    except (*FAILURES, ValueError):
        return None
    feeds = {name: array for name, array in search.feeds.items() if name in reads}
    feeds.update(values)
    feeds.update((theirs[name], values[name]) for name in inner)
    if not set(_inputs(reference)) <= set(feeds):
        unused = [value for value in reference.graph.inputs if value.name not in feeds]
        if any(value.uses() for value in unused):
            return None
        for value in unused:
            reference.graph.inputs.remove(value)
    for model in (suspect, reference):
        _fix_inputs(model, feeds)
    return suspect, reference, feeds


def _values(search: Search, names: list[str]) -> dict[str, Any]:
    """What the suspect itself has there; where keeping tensors changes it, what the reference has."""
    if not names:
        return {}
    if search.suspect.changes:
        theirs = [search.names[name] for name in names]
        found = run_part(search.reference, list(dict.fromkeys(theirs)), search.feeds)
        return {name: found[other] for name, other in zip(names, theirs, strict=True)}
    return {name: np.asarray(a, np.float32) for name, a in search.suspect.keep(names, search.feeds).values.items()}


def _inputs(model: onnx_ir.Model) -> list[str]:
    return [value.name or "" for value in model.graph.inputs if not value.is_initializer()]


def _fix_inputs(model: onnx_ir.Model, feeds: Mapping[str, Any]) -> None:
    """Inputs of the feeds' shapes; a floating one is fp32, and cast to its own type inside."""
    import onnx_ir as ir

    for value in model.graph.inputs:
        value.shape = ir.Shape(feeds[value.name or ""].shape)
        kind = value.dtype
        if kind is None or kind.name not in FLOATS or kind.name == "FLOAT":
            continue
        low = ir.Value(name=f"{value.name}/{kind.name.lower()}", shape=value.shape, type=ir.TensorType(kind))
        value.replace_all_uses_with(low)
        cast = ir.Node("", "Cast", [value], [ir.AttrInt64("to", int(kind))], outputs=[low], name=f"cast_{value.name}")
        model.graph.insert_before(model.graph[0], cast)
        value.type = ir.TensorType(ir.DataType.FLOAT)


def _further_up(search: Search, reads: list[str]) -> list[str]:
    """What the makers of `reads` read in turn."""
    found: dict[str, None] = {}
    for name in reads:
        if name not in search.lineage.makers:
            found[name] = None
            continue
        _, above = search.lineage.region(name, [one for one in search.names if one != name])
        found.update(dict.fromkeys(above))
    return list(found)
