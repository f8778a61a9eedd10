"""The two forms in which TensorRT lists the layers of a plan: the inspector's JSON, and the text in its verbose log.

The JSON is documented (NVIDIA, "Engine Inspector"); which fields a layer has differs between versions and kinds of
layer, so that each is read where it is there. The text is not documented: it is read as TensorRT for RTX 1.6.1 writes
it, one layer a line, the names in it as they are in the graph, with whatever brackets and commas they have.
"""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec

from trtship.spec import Record


class LayerTensor(Record, frozen=True):
    """What a layer reads or writes: `shape` has -1 for a dynamic size; `dtype` is trtship's word for it, TensorRT's own
    where trtship has none, and empty where none is given."""

    name: str
    shape: tuple[int, ...]
    dtype: str


class Layer(Record, frozen=True):
    """A layer of a plan, which for generated code is a kernel.

    `kind` is TensorRT's word (`gemm`, `kgen`, `runtime_fusion` ...), `nodes` the ONNX nodes that it came from (none
    where TensorRT says none), `tactic` the kernel's name; `kind` and `tactic` are empty where they are not given.
    Weights and other constants are no inputs. `profile` is the index of the optimization profile that it runs in.
    """

    name: str
    kind: str
    nodes: tuple[str, ...]
    inputs: tuple[LayerTensor, ...]
    outputs: tuple[LayerTensor, ...]
    tactic: str
    profile: int = 0


DTYPES = {
    "float": "float32", "fp32": "float32", "half": "float16", "fp16": "float16", "bfloat16": "bfloat16",
    "bf16": "bfloat16", "int8": "int8", "uint8": "uint8", "int32": "int32", "int64": "int64", "bool": "bool",
}  # fmt: skip
_DTYPE = re.compile(rf"\b({'|'.join(DTYPES)})\b", re.IGNORECASE)
_HEAD = re.compile(r"Name: (?P<name>.*?), LayerType: (?P<kind>[^,\[\]]*), (?=Inputs: \[)", re.DOTALL)
_LIST = re.compile(r"(?:, )?(?P<of>Inputs|Constants|Outputs): \[")
_TENSOR = re.compile(
    r"(?:,| )*\{ Name: (?P<name>.*?), Dimensions: \[(?P<shape>[-\d, ]*)\](?:, \w+: \[[-\d, ]*\])*"
    r"(?:, Datatype: (?P<dtype>[^,{}]*))?(?:, Format: .*?)? \}(?=, \{ Name: | ?\])",
    re.DOTALL,
)
_TACTIC = re.compile(r", TacticName: (.*?)(?=, [A-Z]\w*: |\Z)", re.DOTALL)
_METADATA = re.compile(r", Metadata: (.*)\Z", re.DOTALL)
_PROFILE = re.compile(r" \[profile (\d+)\]")
_PIECE = re.compile(r"_myl(\d+)_\d+\Z")
_END = re.compile(r"\n\n(?=\S[^\n]*:\n|\Z)")


def layers_from_text(text: str, *, profiles: int = 1) -> tuple[tuple[Layer, ...], int]:
    """The layers of one message of the verbose log, and how many of its entries could not be read; `profiles` is how
    many optimization profiles the plan has."""
    listed = _END.split(text.partition("Layers:")[2], maxsplit=1)[0]
    entries = [entry for entry in re.split(r"\n(?=Name: )", listed) if entry.strip()]
    found = [_layer_of(entry.rstrip("\n")) for entry in entries]
    return _with_profiles([layer for layer in found if layer is not None], profiles), found.count(None)


def _with_profiles(layers: list[Layer], profiles: int) -> tuple[Layer, ...]:
    """Each with its profile.

    TensorRT adds `[profile 1]` to the names that come from the graph, for all profiles but the first. Kernels that it
    generates bear the number of the piece of the graph that they are in (`_myl1_37`); a piece is of one profile. Where
    there are as many pieces as `profiles`, each is its own profile's, in order: a graph that is fused to the last node
    has no name of its own left.
    """
    numbers = sorted({int(piece[1]) for layer in layers if (piece := _PIECE.search(layer.name))})
    pieces = {str(number): index for index, number in enumerate(numbers)} if len(numbers) == profiles else {}
    for layer in layers:
        said, piece = _PROFILE.search(layer.name), _PIECE.search(layer.name)
        if said and piece:
            pieces[piece[1]] = int(said[1])
    found, last = [], 0
    for layer in layers:
        said, piece = _PROFILE.search(layer.name), _PIECE.search(layer.name)
        last = int(said[1]) if said else pieces.get(piece[1], 0) if piece else last
        found.append(msgspec.structs.replace(layer, profile=last))
    return tuple(found)


def _layer_of(entry: str) -> Layer | None:
    head = _HEAD.match(entry)
    if head is None:
        return None
    lists: dict[str, tuple[LayerTensor, ...]] = {}
    position = head.end()
    while (opened := _LIST.match(entry, position)) is not None:
        tensors = []
        position = opened.end()
        while (tensor := _TENSOR.match(entry, position)) is not None:
            shape = tuple(int(size) for size in tensor["shape"].split(",") if size.strip())
            tensors.append(LayerTensor(name=tensor["name"], shape=shape, dtype=_dtype(tensor["dtype"])))
            position = tensor.end()
        closed = re.compile(r" *\]").match(entry, position)
        if closed is None:
            return None
        lists[opened["of"]], position = tuple(tensors), closed.end()
    rest = entry[position:]
    tactic, metadata = _TACTIC.match(rest), _METADATA.search(rest)
    return Layer(
        name=head["name"],
        kind=head["kind"],
        nodes=nodes_of(metadata[1] if metadata else ""),
        inputs=lists.get("Inputs", ()),
        outputs=lists.get("Outputs", ()),
        tactic=tactic[1] if tactic else "",
    )


def layers_from_json(text: str, *, profiles: int = 1) -> tuple[Layer, ...]:
    """The layers that the inspector lists, of a plan with so many `profiles`. Raises ValueError where that is no
    JSON, or has no list of layers."""
    plain = json.loads(text)
    listed = plain.get("Layers") if isinstance(plain, dict) else None
    if not isinstance(listed, list):
        raise ValueError('it has no list of "Layers"')
    return _with_profiles([_layer_of_json(one if isinstance(one, dict) else {"Name": one}) for one in listed], profiles)


def _layer_of_json(one: dict[str, Any]) -> Layer:
    return Layer(
        name=str(one.get("Name", "")),
        kind=str(one.get("LayerType", "")),
        nodes=nodes_of(str(one.get("Metadata", ""))),
        inputs=_tensors(one.get("Inputs")),
        outputs=_tensors(one.get("Outputs")),
        tactic=str(one.get("TacticName", "")),
    )


def _tensors(listed: Any) -> tuple[LayerTensor, ...]:
    dicts = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    return tuple(
        LayerTensor(
            name=str(one.get("Name", "")),
            shape=tuple(size for size in one.get("Dimensions") or () if isinstance(size, int)),
            dtype=_dtype(one.get("Datatype") or one.get("Format/Datatype")),
        )
        for one in dicts
    )


def _dtype(said: Any) -> str:
    """`Half`, or a sentence such as `Row major linear FP16 format`, as `float16`."""
    known = _DTYPE.findall(str(said or ""))
    return DTYPES[known[-1].lower()] if known else str(said or "")


def nodes_of(metadata: str) -> tuple[str, ...]:
    """The names in `[ONNX Layer: a]<US>[ONNX Layer: b]`, each once; groups are separated by <RS>."""
    parts = [part.strip() for part in re.split("[\x1e\x1f]", metadata)]
    opening = "[ONNX Layer: "
    names = [part[len(opening) : -1] for part in parts if part.startswith(opening) and part.endswith("]")]
    return tuple(dict.fromkeys(names))
