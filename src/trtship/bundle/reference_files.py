"""Checks on a bundle's reference arrays before they are made: their headers, and their shapes against the manifest."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

from trtship.errors import BundleError
from trtship.spec import TensorSpec

if TYPE_CHECKING:
    from trtship.bundle.manifest import Manifest
    from trtship.verify import Reference

MAX_HEADER = 10_000
"""Bytes of a .npy file's header: numpy's own limit, since it is parsed as Python literals."""
MAX_ROWS = 100_000
"""Reference rows; a deploy records 9."""


def check_npy(data: bytes, *, where: str) -> None:
    """Check that a .npy file's header tells exactly the bytes that follow it, and numbers.

    `numpy.load` allocates what the header claims before it reads.

    Raises:
        BundleError: the header is malformed, claims more or less than is there, or names Python objects.
    """
    stream = BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, _, dtype = read(stream, max_header_size=MAX_HEADER)
        elements = math.prod(shape)
    except Exception as error:  # the header is a Python literal: whatever its evaluation raises
        raise _refused(where, f"its header cannot be read: {str(error)[:200]}") from error
    if dtype.hasobject or dtype.fields is not None or dtype.subdtype is not None:
        raise _refused(where, "it has Python objects or records, not numbers")
    if any(size < 0 for size in shape) or elements * dtype.itemsize != len(data) - stream.tell():
        raise _refused(
            where, f"its header tells {list(shape)} of {dtype}, and {len(data) - stream.tell()} bytes follow"
        )


def check_reference(reference: Reference, manifest: Manifest, *, where: str) -> None:
    """Check that the rows are there and have the shapes of the manifest's inputs and outputs.

    Raises:
        BundleError: an array is missing, or has another shape.
    """
    m, batch = manifest, reference.batch
    groups: list[tuple[Sequence[TensorSpec], Mapping[str, Any]]] = [
        (m.inputs, reference.inputs),
        (m.outputs, reference.outputs),
    ]
    if reference.exact is not None:
        groups.append((m.outputs, reference.exact))
    rows = _rows(reference.inputs.values())
    for specs, arrays in groups:
        for spec in specs:
            if why := _misfit(spec, arrays.get(spec.name), batch=batch, rows=rows):
                raise _refused(where, why)
    edges = reference.edges
    if edges is None:
        return
    if not edges.names or not all(isinstance(name, str) for name in edges.names):
        raise _refused(where, "the edge rows have no names")
    for specs, arrays in ((m.inputs, edges.inputs), (m.outputs, edges.outputs)):
        for spec in specs:
            array = arrays.get(spec.name)
            whole = None if array is None or array.ndim == 0 else array[0] if batch is None else array
            if why := _misfit(spec, whole, batch=batch, rows=len(edges.names)):
                raise _refused(where, f"edges: {why}")
            if array is not None and len(array) != len(edges.names):
                raise _refused(where, f"edges: {spec.name} has {len(array)} rows for {len(edges.names)} names")


def _rows(arrays: Iterable[Any]) -> int:
    return next((int(array.shape[0]) for array in arrays if array.ndim), 0)


def _misfit(spec: TensorSpec, array: Any, *, batch: str | None, rows: int) -> str:
    """Why an array is not one of `spec`; empty where it is. Letters other than the batch's may be of any size."""
    if array is None:
        return f"{spec.name} is missing"
    fits = array.ndim == len(spec.shape) and all(
        size == wanted if isinstance(wanted, int) else size > 0
        for size, wanted in zip(array.shape, spec.shape, strict=False)
    )
    if batch is not None and fits and spec.shape[:1] == (batch,):
        fits = 1 <= rows <= MAX_ROWS and array.shape[0] == rows
    if array.dtype.kind not in "fiubV":
        fits = False
    return "" if fits else f"{spec.name} is {array.dtype} {list(array.shape)}, and the manifest says {spec}"


def _refused(where: str, why: str) -> BundleError:
    return BundleError(f"the reference data of {where} cannot be used", why=why, do="deploy the model again")
