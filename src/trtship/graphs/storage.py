"""ONNX graphs on disk: read, written whole, with external data where protobuf's 2 GiB would not hold them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from trtship.errors import GraphError
from trtship.files import draft_beside
from trtship.graphs.wellformed import check_wellformed
from trtship.needs import need

if TYPE_CHECKING:
    import onnx_ir

EXTERNAL_OVER = 2**31 - 2**26
"""Bytes of tensor data above which it goes beside the graph: protobuf ends at 2 GiB, 64 MiB are left for the rest."""


def load_graph(path: Path) -> onnx_ir.Model:
    """The graph at `path`; external data stays on disk until it is used. Raises GraphError."""
    ir, onnx = need("onnx_ir", purpose="reading an ONNX graph"), need("onnx", purpose="reading an ONNX graph")
    if not path.is_file():
        raise GraphError(f"there is no ONNX file {path}", why="no such file", do="check the path")
    try:
        proto = onnx.load_model(path, load_external_data=False)
        if proto.graph.output:
            check_wellformed(proto, path)
        model: onnx_ir.Model = ir.serde.deserialize_model(proto)
        ir.external_data.set_base_dir(model.graph, path.parent)
    except GraphError:
        raise
    except Exception as error:
        why = "it does not parse as an ONNX model" + (f": {error}" if str(error) else "")
        raise GraphError(f"{path} is no ONNX file", why=why, do="name a file that torch.onnx.export wrote") from error
    if not model.graph.outputs:
        raise GraphError(
            f"{path} is no ONNX file",
            why="it has no outputs, so it is text, or something else",
            do="name a file that torch.onnx.export wrote",
        )
    return model


def graph_files(path: Path) -> tuple[Path, ...]:
    """The ONNX file and the files of its external data, each once. Raises GraphError as `load_graph` does."""
    return (path, *_external_files(load_graph(path), path))


def save_graph(model: onnx_ir.Model, path: Path, *, external_over: int = EXTERNAL_OVER) -> tuple[Path, ...]:
    """Write the graph and return the files written: `path`, and `path` + `.data` when its tensors exceed the limit.

    `external_over` is in bytes. The files are written beside `path`, checked there as by `check_graph`, and renamed,
    the graph last. `model` is left as it was, and may have been read from `path`. Raises OutputError, GraphError.
    """
    ir = need("onnx_ir", purpose="writing an ONNX graph")
    tensors = [value.const_value for value in _initializers(model)]
    external = sum(tensor.nbytes for tensor in tensors if tensor is not None) > external_over
    data = path.with_name(path.name + ".data")
    with draft_beside(path) as draft:
        if external:
            ir.save(model, draft / path.name, external_data=data.name, size_threshold_bytes=1024)
        else:
            _save_in_one_file(model, draft / path.name)
        check_graph(draft / path.name)
        if external:
            os.replace(draft / data.name, data)
        os.replace(draft / path.name, path)
    return (path, data) if external else (path,)


def check_graph(path: Path) -> None:
    """onnx's checker, with strict type and shape inference; graphs of any size. Raises GraphError."""
    onnx = need("onnx", purpose="checking a graph")
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:
        why = str(error).strip().splitlines()[0][:500]
        raise GraphError(f"{path.name} is not a valid ONNX graph", why=why, do="export it again") from error


def _save_in_one_file(model: onnx_ir.Model, path: Path) -> None:
    """A tensor that was read from external data would be saved as a reference to it: put the data in instead."""
    import onnx_ir as ir

    values = [value for value in _initializers(model) if isinstance(value.const_value, ir.ExternalTensor)]
    tensors = [value.const_value for value in values]
    try:
        for value, tensor in zip(values, tensors, strict=True):
            assert tensor is not None
            value.const_value = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=tensor.name)
        ir.save(model, path)
    finally:
        for value, tensor in zip(values, tensors, strict=True):
            value.const_value = tensor


def _initializers(model: onnx_ir.Model) -> Iterator[onnx_ir.Value]:
    for graph in model.graphs():
        yield from graph.initializers.values()


def _external_files(model: onnx_ir.Model, path: Path) -> tuple[Path, ...]:
    import onnx_ir as ir

    files: dict[Path, None] = {}
    for value in _initializers(model):
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            location = PurePosixPath(str(tensor.location))
            if location.is_absolute() or ".." in location.parts:
                why = f"{value.name} refers to {location}, outside the graph's folder"
                raise GraphError(f"{path} is not safe to read", why=why, do="save its data beside it")
            files[path.parent / location] = None
    return tuple(files)
